"""Our state inside the Trainer's checkpoints: sealed when written, found again at a resume.

The Trainer writes into ``checkpoint-N`` file by file and renames nothing, so a folder may be half
of one. We add ``checkpoint-N/aimmerge`` after everything else: our own state, one part a rank, and
a manifest that covers every file of the checkpoint. With it the folder is complete.

A mark in ``TrainerState.stateful_callbacks``, which the Trainer saves and loads whatever its flags
say, tells which checkpoint was resumed from: callbacks are not told.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from transformers import Trainer, TrainerState
from transformers.trainer_utils import SaveStrategy, rotate_checkpoints

from aimmerge_fast.durable.manifest import read_part, seal, write_part
from aimmerge_fast.integrations import ranks
from aimmerge_fast.integrations.transformers import loop_randomness, run_folder, weights
from aimmerge_fast.integrations.transformers.mark import AIMMergeMark, remove_from
from aimmerge_fast.memory import RehearsalMemory

log = logging.getLogger(__name__)
MARK = AIMMergeMark.__name__
Tree = dict[str, Any]


class TrainerCheckpoints:
    """The checkpoints of one Trainer; every rank calls every method.

    Args:
        trainer: the Trainer.
        task: what it trains.
        resume_from: the checkpoint that ``train(resume_from_checkpoint=...)`` is given, where it
            was moved since it was written; otherwise it is found without.
    """

    def __init__(self, trainer: Trainer, task: str, resume_from: str | Path | None = None) -> None:
        self._trainer, self._args, self._task = trainer, trainer.args, task
        self._resume_from = Path(resume_from).absolute() if resume_from is not None else None
        self._resumed: Path | None = None
        self._mark = AIMMergeMark()
        self._stamps: dict[str, Any] = {}  # of the checkpoints whose content we know about
        self._step_begin: loop_randomness.States | None = None
        self._redo: Tree | None = None  # random states to put back when the first update begins
        if trainer.args.save_only_model:
            log.warning(
                "aimmerge_fast: save_only_model=True: no training can go on from these checkpoints"
            )

    def look_over(self) -> None:
        """Rename broken newest checkpoints, so that ``resume_from_checkpoint=True`` finds a whole.

        Only in an output_dir that an attached Trainer has trained in; each is named in a warning,
        and so is another task whose checkpoints lie there.
        """
        args, run, task = self._args, self._output, self._task
        ranks.main_does(args.device, args.should_save, lambda: run_folder.look_over(run, task))

    def find(self) -> Tree | None:
        """Our state in the checkpoint that the Trainer resumed from; None where it has none.

        Raises:
            Broken: the checkpoint is not complete, or not what was written. RuntimeError: it is
                nowhere to be found. ValueError: saved by another number of processes, or with
                save_only_model=True; or the model's weights are not those of the checkpoint.
        """
        state = self._trainer.state
        held = _marks(state).get(MARK)
        if held is None:
            if state.global_step:
                log.warning(
                    "aimmerge_fast: the checkpoint of step %d was saved without us: merging starts "
                    "there, as if the task began with that step",
                    state.global_step,
                )
            return None
        resumed = self._locate(held["attributes"])
        tree = ranks.as_one(self._args.device, lambda: self._read(resumed))
        self._resumed, self._redo = resumed, tree["random"]
        return tree

    def own(self) -> None:
        """Take over the run's folder: from the checkpoint that was found, or from nothing."""
        args, state, run = self._args, self._trainer.state, self._run()
        if run is None:
            log.warning(
                "aimmerge_fast: a hyperparameter search without hp_name: its checkpoints cannot be "
                "found, so they are not sealed; give hp_name= to hyperparameter_search"
            )
            return
        if args.save_strategy != SaveStrategy.NO or args.enable_jit_checkpoint:
            resumed, step = self._resumed, state.global_step
            start = (step, resumed or run / run_folder.name_of(step))
            stays = start if resumed is not None or step > 0 else None
            ranks.main_does(args.device, args.should_save, lambda: run_folder.take_over(run, stays))
        self._stamps = {path.name: self._stamp(path) for _, path in run_folder.checkpoints(run)}
        self._mark = AIMMergeMark(secrets.token_hex(8), str(run), self._trainer)
        _marks(state)[MARK] = self._mark.entry()
        self._trainer.add_callback(self._mark)

    def seal(self, tree: Callable[[], Tree]) -> None:
        """Complete the checkpoint that the Trainer has just written, then delete older ones."""
        run = self._run()
        if run is None:
            return
        folder = run / run_folder.name_of(self._trainer.state.global_step)
        try:
            there = folder.is_dir() or not self._args.should_save
            if ranks.smallest(self._args.device, int(there)):
                self._complete(folder, tree, None)
            else:
                log.warning("aimmerge_fast: the Trainer wrote no %s to resume from", folder)
        finally:
            self._mark.give_back()

    def after_jit(self, tree: Callable[[], Tree], event: str) -> bool:
        """Complete a checkpoint that ``JITCheckpointCallback`` wrote in this ``event``, if it did.

        Call it first in every event in which that one may: ``step_begin``, ``pre_optimizer_step``,
        ``step_end``, ``epoch_end``, ``train_end``. An update in which it wrote is done again at the
        resume, from the random states that it began with.
        """
        if event == "step_begin" and self._redo is not None:
            loop_randomness.put_back(self._redo)
            self._redo = None
        args = self._args
        if not args.enable_jit_checkpoint:
            return False
        if event != "pre_optimizer_step":
            self._step_begin = loop_randomness.take() if event == "step_begin" else None
        run = self._output  # also in a search: it knows of no trial
        name = run_folder.name_of(self._trainer.state.global_step)
        stamp = self._stamp(run / name)
        try:
            if stamp is None or stamp == self._stamps.get(name):
                return False
            self._complete(run / name, tree, self._step_begin)
            return True
        finally:
            self._mark.give_back()

    def end(self) -> None:
        """Leave the Trainer as it was found."""
        remove_from(self._trainer)

    # ---- where ---------------------------------------------------------------------------------

    @property
    def _part(self) -> str:
        return f"rank{self._args.process_index}"

    @property
    def _output(self) -> Path:
        return Path(str(self._args.output_dir)).absolute()

    def _run(self) -> Path | None:
        """The folder of the run; None in a search whose trials have no name of ours to read."""
        state = self._trainer.state
        if not state.is_hyper_param_search:
            return self._output
        return self._output / state.trial_name if state.trial_name else None

    def _locate(self, held: Tree) -> Path:
        """The checkpoint that was resumed from; looked through by the process that saves."""
        args, step = self._args, self._trainer.state.global_step
        name = run_folder.name_of(step)
        places = [self._output / name, Path(held["run"]) / name]
        if self._resume_from is not None:
            places = [self._resume_from]
        number = len(places)

        def look() -> None:
            nonlocal number
            number = run_folder.find(places, held["life"], step, args.world_size)

        ranks.main_does(args.device, args.should_save, look)
        return places[ranks.smallest(args.device, number)]

    def _read(self, resumed: Path) -> Tree:
        state, tree = self._trainer.state, read_part(resumed, self._part)
        if state.global_step >= state.max_steps and (state.epoch or 0) % 1:
            log.warning(
                "aimmerge_fast: %s is of the last update, and the Trainer makes one more all the "
                "same: it does where max_steps ends within an epoch; what is done is in there",
                resumed,
            )
        weights.require_loaded(self._trainer, resumed, tree["weights"])
        return tree

    # ---- writing -------------------------------------------------------------------------------

    def _complete(
        self, folder: Path, tree: Callable[[], Tree], redo: loop_randomness.States | None
    ) -> None:
        args, step = self._args, self._trainer.state.global_step
        resumable = not args.save_only_model

        def write() -> None:
            random = loop_randomness.to_tree(redo) if redo is not None else None
            own = {"global_step": step, "random": random}
            own["weights"] = weights.checksums(self._trainer)
            write_part(folder, self._part, {**tree(), **own})

        if resumable:
            ranks.as_one(args.device, write)
        info = {"life": self._mark.life, "task": self._task, "global_step": step}
        info |= {"world": args.world_size, "resumable": resumable}
        ranks.main_does(args.device, args.should_save, lambda: seal(folder, info))
        self._stamps[folder.name] = self._stamp(folder)
        ranks.main_does(args.device, args.should_save, lambda: self._retire(folder))

    def _retire(self, newest: Path) -> None:
        limit = self._mark.limit
        if limit is None:
            return
        # a JIT checkpoint may be written over the newest, which is then not complete for a while
        if self._args.enable_jit_checkpoint:
            limit = max(limit, 2)
        best = self._trainer.state.best_model_checkpoint or str(newest)
        rotate_checkpoints(str(newest.parent), limit, best, use_mtime=True)

    def _stamp(self, checkpoint: Path) -> tuple[int, int] | None:
        """Changes whenever this rank writes a checkpoint anew; None where it has written none."""
        args = self._args
        of_rank = f"_{args.process_index}" if args.world_size > 1 else ""
        try:
            found = (checkpoint / f"rng_state{of_rank}.pth").stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns


def _marks(state: TrainerState) -> dict[str, Tree]:
    marks: Any = state.stateful_callbacks  # annotated as the list that it is made from
    return cast("dict[str, Tree]", marks)


def restore_memory(memory: RehearsalMemory | None, tree: Tree) -> None:
    """Fill an empty memory from the saved state; one that differs is the merger's to refuse."""
    if memory is not None and len(memory) == 0 and tree["memory"] is not None:
        memory.load_state_dict(tree["memory"])
