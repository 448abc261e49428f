"""Per-entry fusion: the importance masks of Recurrent-KIF in place of the two weights alpha.

An entry that mattered to the training steps since the last merge (new), or to the memory steps of
this task (past), keeps more of that task vector. When to merge is left to the schedule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from aimmerge_fast import kernels
from aimmerge_fast.binding import Binding
from aimmerge_fast.config import AIMConfig

Weights = tuple[tuple[float, float], ...]


@dataclasses.dataclass(frozen=True)
class EntryFusion:
    """``FastAIMMerger(..., AIMConfig(alpha_new=1.0), fusion=EntryFusion())``.

    In brackets the default, which is Recurrent-KIF's (arXiv 2502.17510), then the range.

    Attributes:
        quantile: [0.8; 0 to 1] of all entries' scores above which an entry is important.
        beta: [0.85; 0 to 1] of both running averages of |theta * gradient|.
        weights: (new, past) of the task vectors for entries important to both [0.4, 0.6], only to
            new [1, 0], only to past [0, 1], to neither [0.5, 0.5].
    """

    quantile: float = 0.8
    beta: float = 0.85
    weights: Weights = kernels.KIF_WEIGHTS

    def __post_init__(self) -> None:
        for name in ("quantile", "beta"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 <= value <= 1:
                raise ValueError(f"{name}={value!r} must be a number from 0 to 1")
        pairs = tuple(tuple(map(float, pair)) for pair in self.weights)
        if len(pairs) != 4 or any(len(pair) != 2 for pair in pairs):
            raise ValueError(f"weights={self.weights!r} must be four pairs (new, past)")
        object.__setattr__(self, "weights", pairs)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        fields = dataclasses.asdict(self)
        return {**fields, "weights": [list(pair) for pair in self.weights]}


class Importances:
    """The importances of a merger's entries for new and past, and the fusion by them.

    Args:
        settings: what to do with them.
        binding: the merger's parameters and arenas.
        optimizers: whose updates count; one that steps inside an open merge makes memory steps.

    Raises: ValueError when the config's merges do not leave theta_j for us to fuse.
    """

    def __init__(
        self,
        settings: EntryFusion,
        config: AIMConfig,
        binding: Binding,
        optimizers: Sequence[torch.optim.Optimizer],
    ) -> None:
        if config.schedule == "monitor" or config.alpha_new != 1.0:
            raise ValueError(
                f"fusion= replaces the weights alpha: set alpha_new=1.0 (it is {config.alpha_new}) "
                f"and a schedule that merges (it is {config.schedule!r})"
            )
        if binding.sharded:
            raise ValueError(
                "fusion= needs all entries on every rank, and these are sharded (FSDP2): use DDP"
            )
        if not optimizers:
            raise ValueError("fusion= reads the gradients at each update: give optimizer=")
        self.settings, self._binding = settings, binding
        self._optimizers = list(dict.fromkeys(optimizers))
        tables = binding.tables()
        self._new = [kernels.new_importance(table) for table in tables]
        self._past = [kernels.new_importance(table) for table in tables]

    def begin_task(self) -> None:
        """Forget everything: a task begins, or a merge was undone."""
        for importance in (*self._new, *self._past):
            importance.reset_()

    def begin_interval(self) -> None:
        """A merge was made: new begins anew, past is of the whole task."""
        for importance in self._new:
            importance.reset_()

    @contextmanager
    def watching(self, counts: Callable[[], bool], is_open: Callable[[], bool]) -> Iterator[None]:
        """Take in each update of the optimizers for which ``counts()``, before it is made."""

        def note(*_: Any) -> None:
            if counts():
                self._note(self._past if is_open() else self._new)

        with ExitStack() as stack:
            for optimizer in self._optimizers:
                stack.callback(optimizer.register_step_pre_hook(note).remove)
            yield

    def fuse(self) -> int:
        """live and mid <- the fused parameters; how many of their entries are not finite.

        Unless that is 0, mid stays theta_j, which closing the merge then puts back. Waits for the
        device.
        """
        settings, binding = self.settings, self._binding
        limits = torch.stack(
            [kernels.quantile(side, settings.quantile) for side in (self._new, self._past)]
        )
        tables = binding.tables()
        bound = zip(
            *(binding.backends, tables, binding.anchors, binding.mids, self._new, self._past),
            strict=True,
        )
        counts = [
            kernels.weighted_(
                table,
                anchor,
                mid,
                new,
                past,
                limits.to(mid.device),
                settings.weights,
                backend=backend,
            )
            for backend, table, anchor, mid, new, past in bound
        ]
        bad = sum(int(count) for count in counts)
        if not bad:
            for table, mid in zip(tables, binding.mids, strict=True):
                kernels.copy_into(mid, table)
        return bad

    def state_dict(self) -> dict[str, Any]:
        return {
            "settings": self.settings.to_dict(),
            "new": [_copied(importance) for importance in self._new],
            "past": [_copied(importance) for importance in self._past],
        }

    def check_state(self, saved: Mapping[str, Any]) -> None:
        """``ValueError`` unless ``load_state_dict`` can take it."""
        mine = self.settings.to_dict()
        if saved.get("settings") != mine:
            raise ValueError(
                f"the state was saved with fusion {saved.get('settings')}, this merger has {mine}; "
                "build the merger with the saved fusion"
            )
        for name, own in (("new", self._new), ("past", self._past)):
            sizes = [importance.sensitivity.numel() for importance in own]
            if [len(pair["sensitivity"]) for pair in saved[name]] != sizes:
                raise ValueError(f"the state's fusion {name!r} does not have {sizes} entries")

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        for name, own in (("new", self._new), ("past", self._past)):
            for importance, pair in zip(own, saved[name], strict=True):
                importance.load_state_dict(pair)

    # ---- internals -------------------------------------------------------------------------

    def _note(self, importances: Sequence[kernels.Importance]) -> None:
        parameters = self._binding.parameters
        flat = parameters.flat()
        gradients = [_gradient(tensor) for tensor in parameters.tensors()]
        for device, backend, importance in zip(
            parameters.devices(), self._binding.backends, importances, strict=True
        ):
            mine = [k for k, tensor in enumerate(flat) if tensor.device == device]
            kernels.importance_(
                [flat[k] for k in mine],
                [gradients[k] for k in mine],
                importance.sensitivity,
                importance.uncertainty,
                self.settings.beta,
                self.settings.beta,
                backend=backend,
            )


def new_importances(
    fusion: EntryFusion | None,
    config: AIMConfig,
    binding: Binding,
    optimizers: Sequence[torch.optim.Optimizer | None],
    scaler: torch.amp.GradScaler | None,
) -> Importances | None:
    """What a merger with ``fusion`` needs; None without.

    Raises: ValueError for a scaler, and what ``Importances`` raises.
    """
    if fusion is None:
        return None
    if scaler is not None:
        raise ValueError("fusion= reads gradients, which scaler= may have scaled: use bfloat16")
    return Importances(fusion, config, binding, [o for o in optimizers if o is not None])


def _gradient(parameter: Tensor) -> Tensor | None:
    """Its gradient, (numel,) in the order of the parameter's memory."""
    gradient = parameter.grad
    if gradient is None:
        return None
    gradient = gradient.detach()
    if gradient.stride() != parameter.stride():
        gradient = torch.empty_like(parameter).copy_(gradient)
    return gradient.as_strided((gradient.numel(),), (1,), gradient.storage_offset())


def _copied(importance: kernels.Importance) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in importance.state_dict().items()}
