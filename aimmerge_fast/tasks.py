"""How a task is entered, gone on with and left."""

from __future__ import annotations

from typing import Any

from aimmerge_fast import agreement, events, state
from aimmerge_fast.memory import RehearsalMemory
from aimmerge_fast.protocol import MergeProtocol


class TaskProtocol(MergeProtocol):
    """The two ends of a task, around the calls that drive a merger inside of it."""

    resumed: dict[str, Any] | None  # a loaded state whose task was not entered yet

    def _begin_task(self, name: str, memory: RehearsalMemory | None) -> None:
        if self.position.in_task:
            raise RuntimeError(
                f"task {name!r} inside task {self.controller.task!r}: leave it first"
            )
        if not isinstance(name, str) or not name:
            raise TypeError(f"a task's name must be a non-empty string, got {name!r}")
        monitors = self._check_memory(name, memory)
        position = (self.position, self.resumed)
        agreement.require_same_task(self.processes, name, memory, *position)
        self.binding.heal()
        self.binding.require_equal_ranks()
        if self.resumed is not None:
            self._go_on(name, memory, self.resumed)
        else:
            self.binding.require_finite()
            self.controller.begin_task(name, self.position.tasks_begun)
            self.binding.set_anchor()
            self._forget_importances()
            self.position.probe_pending = self.position.ending = False
            if memory is not None and monitors:
                self._rehearsal().begin_task(memory, self.position.tasks_begun)
                self._probe_ahead()  # what is wrong with the batches shows here, before the task
            self.position.monitors = monitors
            self.position.tasks_begun += 1
            size = len(memory) if memory is not None else 0
            self._emit(events.TaskBegin(name, 0, size, self._settings()))
        self.position.in_task = True

    def _settings(self) -> dict[str, Any]:
        """The config, and the fusion where there is one: its merges are no-ops by alpha alone."""
        settings = self.config.to_dict()
        if self.importances is not None:
            settings["fusion"] = self.importances.settings.to_dict()
        return settings

    def _go_on(self, name: str, memory: RehearsalMemory | None, saved: dict[str, Any]) -> None:
        """Enter the task that the loaded state was saved in."""
        state.enter(saved, name, memory, self.rehearsal)
        self.resumed = None
        self.position.in_task = True
        try:
            if self.controller.is_open and self.position.steps_made is not None:
                self._rehearse(self.controller.merge_steps)  # saved inside a merge of step()
            ahead = self.position.probe_pending or self.controller.is_open or self.position.ending
            if self.position.monitors and not ahead:
                self._probe_ahead()  # saved between a merge and the probe after it
        except BaseException:
            self.position.in_task = False
            raise

    def _check_memory(self, name: str, memory: RehearsalMemory | None) -> bool:
        if memory is None:
            return False
        if not isinstance(memory, RehearsalMemory):
            raise TypeError(f"memory must be a RehearsalMemory, got {type(memory).__name__}")
        if len(memory) == 0 and (self.position.tasks_done > 0 and self.resumed is None):
            raise ValueError(
                f"task {name!r}: the memory is empty though a task was trained before; call "
                "memory.add(task, records) after each task, or pass memory=None for plain training"
            )
        if len(memory):
            self._rehearsal()
        return len(memory) > 0

    def _finish_interval(self) -> None:
        """The end of a task: merge what is unfinished if asked, forget the probe ahead."""
        final = self.config.schedule == "single" or self.config.merge_at_task_end
        if self.controller.is_open:
            raise RuntimeError("the task ended inside an open merge: call close_merge() first")
        if self.position.probe_pending:
            self.controller.restart_interval(keep_progress=True)
            self.position.probe_pending = False
        self.controller.finish_records()
        self.controller.drain()
        self.controller.raise_bad_probes()
        if final and self.position.monitors and self.controller.host.t > 0:
            self.position.ending = True  # a state saved inside of it needs no probe ahead
            self._merge()
