"""What a run says while it works: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn


class View:
    """Takes what happens and shows it.

    On a terminal one bar per stage is redrawn in place; elsewhere a line comes at every step that
    is reported. ``console`` None: silent.
    """

    def __init__(self, console: Console | None) -> None:
        self._console = console
        self._live: Progress | None = None
        self._bar: TaskID | None = None
        self._head = ""
        self._steps = self._from = self._left = 0
        self._started = 0.0
        self.details = ""

    def line(self, text: str) -> None:
        if self._console is not None:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def begin_stage(
        self, arm: str, seed: int, stage: str, index: int, stages: Sequence[Any], steps: int
    ) -> None:
        """``steps`` updates of stage number ``index`` (from 0) are to come, some may be done."""
        self._head = f"[{arm} seed {seed}] {stage} ({index + 1}/{len(stages)})"
        self._steps, self._left = steps, (len(stages) - index - 1) * steps
        self._from, self._started, self.details = -1, time.perf_counter(), ""
        if self._console is not None and self._console.is_terminal:
            self._finish_bar()
            self._live = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[state]}", markup=False),
                console=self._console,
            )
            self._live.start()
            self._bar = self._live.add_task(self._head, total=steps, state="")

    def step(self, step: int, losses: Sequence[float], merges: int) -> None:
        """Update ``step`` of the stage is made; ``losses`` of all its updates so far."""
        now = time.perf_counter()
        if self._from < 0:  # the first report: how long one update takes is not known before
            self._from, since = 0 if step <= 10 else step - 10, self._started
        else:
            since = self._started
        seconds = (now - since) / max(1, step - self._from)
        recent = losses[-10:]
        loss = sum(recent) / len(recent) if recent else float("nan")
        eta = ((self._steps - step) + self._left) * seconds
        state = (
            f"update {step}/{self._steps}  loss {loss:.3f}  merges {merges}{self.details}  "
            f"{seconds:.2f} s/update  ETA of this arm {duration(eta)}"
        )
        if self._live is not None and self._bar is not None:
            self._live.update(self._bar, completed=step, state=state)
            if step == self._steps:
                self._finish_bar()
        else:
            self.line(f"{self._head} {state}")

    def signal(self, interval: int, threshold: float | None) -> None:
        """Merge interval S and threshold delta, as the last probe found them."""
        delta = "" if threshold is None else f"  δ {threshold:.3g}"
        self.details = f"  S {interval}{delta}"

    def close(self) -> None:
        self._finish_bar()

    def _finish_bar(self) -> None:
        if self._live is not None:
            self._live.stop()
        self._live = self._bar = None


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
