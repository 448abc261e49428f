"""Forward and backward passes on the memory: history probes and the memory steps of a merge.

Both run under random streams of their own (dropout included), so a run that only monitors trains to
the same bits as a run without us.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from aimmerge_fast.config import AIMConfig
from aimmerge_fast.memory import MemoryStream, RehearsalMemory
from aimmerge_fast.passes import Batch, HistoryLoss, Part, Passes, to_device
from aimmerge_fast.randomness import PrivateRandomness
from aimmerge_fast.wrapping import Wrapped


class Rehearsal:
    """Runs the model on memory records.

    Args:
        wrapped: the model: memory steps run it as it is wrapped, probes what is inside.
        config: batch sizes, optimiser mode, clipping, seeds.
        optimizer: steps the memory batches (see ``AIMConfig.memory_optimizer``).
        passes: how drawn records become batches, and what the loss of a batch is.
        scaler: a GradScaler of the training loop, used for the memory steps too.
        autocast: makes the context in which forwards run.
        devices: devices of the parameters, the first receives the batches.
    """

    def __init__(
        self,
        wrapped: Wrapped,
        config: AIMConfig,
        optimizer: torch.optim.Optimizer,
        passes: Passes,
        scaler: torch.amp.GradScaler | None,
        autocast: Callable[[], AbstractContextManager[Any]] | None,
        devices: list[torch.device],
    ) -> None:
        self._wrapped, self._model, self._config = wrapped, wrapped.inner, config
        self._passes, self._scaler = passes, scaler
        self._autocast = autocast or nullcontext
        model = self._model
        if not isinstance(model, nn.Module):
            raise ValueError(
                "rehearsal (optimizer= and collate=) runs the model, so give the module itself, "
                f"not a {type(model).__name__} of parameters"
            )
        # dropout draws from the generator of whichever device a layer is on
        everywhere = [*devices, *(p.device for p in model.parameters())]
        self._devices = list(dict.fromkeys(everywhere))
        self.optimizer = optimizer
        self.memory_optimizer = optimizer
        if config.memory_optimizer == "separate":
            self.memory_optimizer = _twin(optimizer)
        self.saved_moments: dict[str, Any] | None = None
        modules = list(model.modules())
        norms = nn.modules.batchnorm._NormBase
        self._running = [m for m in modules if isinstance(m, norms) and m.track_running_stats]
        self._modules = modules

    def begin_task(self, memory: RehearsalMemory, task: int) -> None:
        """Fresh random streams and fresh cursors over the memory for task number ``task``."""
        self._memory = memory
        # walked once a task: a large model's parameters take milliseconds to walk
        self._trained = [p for p in self._model.parameters() if p.requires_grad]
        seed = (self._config.seed * 1_000_003 + task) % (1 << 63)
        fresh = self._config.policy == "released"  # a new permutation at every draw, as its code
        self.streams: dict[str, MemoryStream] = {
            name: memory.stream(name, fresh=fresh, salt=task) for name in ("probe", "memory")
        }
        own = seed + 1_000 * self._passes.processes.rank  # ranks drop out entries of their own
        self.randomness = {
            "probe": PrivateRandomness(own, self._devices),
            "memory": PrivateRandomness(own + 1, self._devices),
        }
        if self._passes.deals:  # every rank collates every rank's records, to the same batches
            self.randomness["collate"] = PrivateRandomness(seed + 2, self._devices)

    def state_dict(self) -> dict[str, Any]:
        """Cursors and random states of the task, JSON-able but for the tensors."""
        return {
            "memory": self._memory.fingerprint(),
            "streams": {name: stream.state_dict() for name, stream in self.streams.items()},
            "randomness": {name: r.state_dict() for name, r in self.randomness.items()},
            "saved_moments": _packed(self.saved_moments) if self.saved_moments else None,
        }

    def check_state(self, saved: dict[str, Any] | None, separate: dict[str, Any] | None) -> None:
        """``ValueError`` unless ``load_state_dict`` and ``load_optimizer_state`` can take these."""
        for part, names in _PARTS.items():
            held = saved if part == "rehearsal" else (saved or {}).get(part)
            if saved is not None and not (isinstance(held, dict) and names <= held.keys()):
                raise ValueError(f"the state's {part!r} lacks one of {', '.join(sorted(names))}")
        if separate is None:
            return
        theirs = [len(group["params"]) for group in separate["param_groups"]]
        mine = [len(group["params"]) for group in self.optimizer.param_groups]
        if theirs != mine:
            raise ValueError(
                f"the state's memory optimizer has groups of {theirs} parameters, the optimizer "
                f"here {mine}; build it over the same groups"
            )

    def load_state_dict(self, saved: dict[str, Any], memory: RehearsalMemory, task: int) -> None:
        """Go on with task number ``task`` where ``state_dict`` left off."""
        self.begin_task(memory, task)
        for name, stream in self.streams.items():
            stream.load_state_dict(saved["streams"][name])
        for name, randomness in self.randomness.items():
            if name in saved["randomness"]:  # without micro_batch nothing is collated apart
                randomness.load_state_dict(saved["randomness"][name])
        moments = saved["saved_moments"]
        self.saved_moments = _unpacked(moments) if moments else None

    def optimizer_state(self) -> dict[str, Any] | None:
        """State of a separate memory optimiser, whose moments outlive the tasks."""
        separate = self.memory_optimizer is not self.optimizer
        return _packed(self.memory_optimizer.state_dict()) if separate else None

    def load_optimizer_state(self, saved: dict[str, Any]) -> None:
        self.memory_optimizer.load_state_dict(_unpacked(saved))

    def probe(self) -> HistoryLoss:
        """Loss of one history batch, of it this rank's rows, without a graph."""
        parts = self._draw("probe", self._config.history_batch)
        with ExitStack() as stack:
            stack.callback(self._wrapped.reshard)
            stack.enter_context(self.randomness["probe"].swapped_in())
            stack.enter_context(torch.no_grad())
            stack.enter_context(self._probing_mode())
            return self._passes.added(
                (self._loss(self._model, part.batch()).detach(), part.items) for part in parts
            )

    @contextmanager
    def memory_phase(self) -> Iterator[None]:
        """Around the memory steps: the loop's gradients are put aside, ``snapshot`` moments too."""
        stepped = [p for group in self.optimizer.param_groups for p in group["params"]]
        # also what another optimiser trains: a backward pass reaches it too
        parameters = list(dict.fromkeys([*stepped, *self._trained]))
        gradients = self._wrapped.kept_gradients(parameters)
        for parameter in parameters:
            parameter.grad = None
        self.save_moments()
        try:
            yield
        finally:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            self.restore_moments()

    def save_moments(self) -> None:
        if self._config.memory_optimizer == "snapshot" and self.saved_moments is None:
            self.saved_moments = copy.deepcopy(self.optimizer.state_dict())

    def restore_moments(self) -> None:
        if self.saved_moments is not None:
            rates = [group["lr"] for group in self.optimizer.param_groups]
            self.optimizer.load_state_dict(self.saved_moments)
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            self.saved_moments = None

    def memory_step(self) -> None:
        """One optimiser update on one memory batch, at the loop's current learning rate."""
        optimizer, scaler = self.memory_optimizer, self._scaler
        if optimizer is not self.optimizer:
            self._follow_training()
        self.optimizer.zero_grad(set_to_none=True)
        parts = self._draw("memory", self._config.memory_batch)
        with self.randomness["memory"].swapped_in(), torch.enable_grad():
            for part in parts:
                with self._wrapped.accumulating(last=part is parts[-1]):
                    self._backward(part)
        if self._config.max_grad_norm is not None:
            if scaler:
                scaler.unscale_(optimizer)
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self._config.max_grad_norm)
        if scaler:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _backward(self, part: Part) -> None:
        loss = self._loss(self._wrapped.model, part.batch())
        if part.weight is not None:
            loss = loss * part.weight
        if self._config.policy == "released":
            loss = loss / self._config.accumulation
        (self._scaler.scale(loss) if self._scaler else loss).backward()

    def _draw(self, stream: str, records: int) -> list[Part]:
        """This rank's passes over the next records of ``stream``."""
        drawn = self.streams[stream].draw(records)
        if not self._passes.deals:
            return self._passes.deal(drawn)
        with self.randomness["collate"].swapped_in():
            return self._passes.deal(drawn)

    def _follow_training(self) -> None:
        """The separate optimiser takes over learning rates and parameters that were replaced."""
        memory = self.memory_optimizer
        for added in self.optimizer.param_groups[len(memory.param_groups) :]:
            memory.add_param_group({**added, "params": list(added["params"])})
        for mine, theirs in zip(memory.param_groups, self.optimizer.param_groups, strict=True):
            mine["lr"] = theirs["lr"]
            for index, (old, new) in enumerate(zip(mine["params"], theirs["params"], strict=True)):
                if old is not new:
                    mine["params"][index] = new
                    memory.state[new] = memory.state.pop(old, {})

    def _loss(self, model: Any, batch: Batch) -> torch.Tensor:
        with self._autocast():
            loss = self._passes.loss_fn(model, to_device(batch, self._devices[0]))
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            got = tuple(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
            raise ValueError(f"loss_fn must return a scalar tensor (the mean loss), got {got}")
        return loss

    @contextmanager
    def _probing_mode(self) -> Iterator[None]:
        """Running statistics never move; dropout stays on unless the config turns it off."""
        chosen = self._running if self._config.probe_dropout else self._modules
        training = [module for module in chosen if module.training]
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True


_PARTS = {
    "rehearsal": {"memory", "streams", "randomness", "saved_moments"},
    "streams": {"probe", "memory"},
    "randomness": {"probe", "memory"},
}


def _twin(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """A new optimizer of the same class and settings over the same parameters."""
    make: Any = type(optimizer)
    try:  # the groups carry every setting; ``defaults`` may name more than the class takes
        twin: torch.optim.Optimizer = make([dict(group) for group in optimizer.param_groups])
        return twin
    except TypeError as error:
        raise ValueError(
            f"memory_optimizer='separate' cannot build a second {type(optimizer).__name__} "
            f"({error}); use 'snapshot' or 'shared'"
        ) from None


def _packed(optimizer: dict[str, Any]) -> dict[str, Any]:
    """A copy of an optimizer's state dict without its integer keys, which JSON does not have."""
    state = [[index, moments] for index, moments in optimizer["state"].items()]
    return copy.deepcopy({**optimizer, "state": state})


def _unpacked(saved: dict[str, Any]) -> dict[str, Any]:
    """A copy: the optimizer that loads it goes on writing into the tensors it is given."""
    return copy.deepcopy({**saved, "state": dict(saved["state"])})
