"""A device that lags behind its host: ops run only when time passes, or when the host waits."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from aimmerge_fast import kernels
from aimmerge_fast.config import AIMConfig
from aimmerge_fast.controller import Controller
from aimmerge_fast.events import Event
from aimmerge_fast.mailbox import Mailbox

Op = Callable[[], Any]


class LateEngine:
    """Queues the ops of ``engine``; a tick runs those that are more than ``lag`` ticks old."""

    def __init__(self, engine: kernels.Engine, lag: int) -> None:
        self._engine, self._lag = engine, lag
        self._queue: deque[tuple[int, Op]] = deque()
        self._now = 0

    def tick(self) -> None:
        """A training or memory step's worth of time."""
        self._now += 1
        while self._queue and self._queue[0][0] < self._now - self._lag:
            self.run_one()

    def run_one(self) -> None:
        if self._queue:
            self._queue.popleft()[1]()

    def finish(self) -> None:
        """The device works on while the host waits, which it does for the newest record."""
        while self._queue:
            self.run_one()

    def enqueue(self, op: Op) -> None:
        self._queue.append((self._now, op))

    def observe_(self, loss: torch.Tensor) -> None:
        self.enqueue(lambda: self._engine.observe_(loss))

    def open_(self) -> None:
        self.enqueue(self._engine.open_)

    def close_(self) -> None:
        self.enqueue(self._engine.close_)

    def advance_(self, partials: torch.Tensor) -> None:
        self.enqueue(lambda: self._engine.advance_(partials))

    def repair_(self) -> None:
        self.enqueue(self._engine.repair_)

    def rebind(self, live: Sequence[torch.Tensor]) -> None:
        self._engine.rebind(live)


@dataclass
class Rig:
    """Two small parameters under a controller, on a late device; ``lag`` None: on a prompt one."""

    config: AIMConfig
    lag: int | None
    seed: int = 0
    timeout: float = 20.0
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        self._generator = generator
        self.live = [torch.randn(n, generator=generator) for n in (7, 33)]
        self.anchor, self.mid = kernels.new_arena(self.live), kernels.new_arena(self.live)
        for arena in (self.anchor, self.mid):
            arena.zero_()  # the gaps between tensors too, so that arenas can be compared
        kernels.copy_into(self.anchor, self.live)
        self.state = kernels.new_state(self.config)
        engine = kernels.engine("eager", self.live, self.anchor, self.mid, self.state)
        self.late = LateEngine(engine, self.lag or 0)
        chosen: kernels.Engine = engine if self.lag is None else self.late
        self.controller = Controller(self.config, chosen, [self.state], self.events.append)
        self.controller.mailbox = Mailbox(
            self.state, check_device=self.late.finish, timeout=self.timeout
        )
        self.controller.begin_task("task", 0)

    def train(self, change: float = 0.01) -> None:
        """One update of the parameters, in the order of the device's ops."""
        noise = [change * torch.randn(x.shape, generator=self._generator) for x in self.live]

        def update() -> None:
            for tensor, step in zip(self.live, noise, strict=True):
                tensor.add_(step)

        if self.lag is None:
            update()
        else:
            self.late.tick()
            self.late.enqueue(update)

    def merge(self) -> int:
        steps = self.controller.open()
        for _ in range(steps):
            self.train()
        self.controller.close()
        return steps

    def run(self, losses: Sequence[float], *, ahead: bool) -> list[bool]:
        """One update per loss, observed after it or (``ahead``) a whole update before."""
        scalars = [torch.tensor(loss, dtype=torch.float64) for loss in losses]
        merged = []
        if ahead:
            self.controller.observe(scalars[0])
        for step in range(len(scalars)):
            self.train()
            if not ahead:
                self.controller.observe(scalars[step])
            merged.append(self.controller.due())
            if merged[-1]:
                self.merge()
            if ahead and step + 1 < len(scalars):
                self.controller.observe(scalars[step + 1])
        return merged

    def bits(self) -> tuple[bytes, ...]:
        """Everything on the device once it has caught up, but for the address of its ring."""
        self.late.finish()
        self.controller.drain()
        state = kernels.read_state(self.state).copy()
        state["state"]["ring"] = 0
        tensors = (*self.live, self.anchor, self.mid)
        ring = kernels.ring(self.state).tobytes()
        return (*(t.numpy().tobytes() for t in tensors), state.tobytes(), ring)
