"""Finds the slots that train in a module: by what PEFT's layers declare, never by name.

An adapter is an entry of the dicts that tuner layers and auxiliary wrappers (``modules_to_save``,
trainable tokens) list; everything outside of them counts when it requires a gradient.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from aimmerge_fast.parameters.slots import Edge, Slot


class _Survey(NamedTuple):
    """The adapters of a model and the layers that have them.

    holders: paths of the dicts whose keys the adapters are.
    """

    holders: set[str]
    known: dict[str, None]
    active: dict[str, None]
    layers: list[Any]


class ModelSlots:
    """Walks a model for the slots that train: chosen adapters, and all that is in no adapter."""

    def __init__(self, model: nn.Module, adapters: str | Sequence[str] | None) -> None:
        survey = _survey(model)
        chosen = self._chosen = _choose(adapters, survey)
        self._model, self._strip = model, False
        trained = {adapter for adapter, _ in self._walk()}
        self._strip = len(trained - {None}) == 1
        frozen = [name for name in chosen if name not in trained]
        if frozen and (adapters is not None or not trained):
            raise ValueError(
                f"adapter {frozen[0]!r} is frozen: none of its parameters requires a gradient; "
                f"load it with is_trainable=True, or call model.set_adapter({frozen[0]!r})"
            )
        if not trained:
            raise ValueError(
                "no trainable parameters: nothing in the model requires a gradient; add an "
                "adapter, or call requires_grad_(True) on what is to be trained"
            )

    def __call__(self) -> list[Slot]:
        return [slot for _, slot in self._walk()]

    def require_unmerged(self) -> None:
        """``RuntimeError`` naming an adapter that was merged into the base since the last walk.

        A write to it now would be lost in the base weights when it is taken out of them again.
        """
        for layer in self._layers:
            try:
                _require_unmerged(layer)
            except ValueError as error:
                raise RuntimeError(str(error)) from None

    def _walk(self) -> Iterator[tuple[str | None, Slot]]:
        """Yield ``(adapter or None, slot)`` in the model's order."""
        holders, _, _, self._layers = _survey(self._model)
        modules = dict(self._model.named_modules())
        for path, owner in modules.items():
            for key, parameter in owner._parameters.items():
                if parameter is None or not parameter.requires_grad:
                    continue
                parts = [*path.split("."), key] if path else [key]
                at = next((i for i in range(len(parts)) if ".".join(parts[:i]) in holders), None)
                adapter = None if at is None else parts[at]
                if adapter is not None and adapter not in self._chosen:
                    continue
                if self._strip and at is not None:
                    del parts[at]
                name = ".".join(part for part in parts if part != "_orig_mod")  # torch.compile's
                yield adapter, Slot(name, _reader(name, owner, key), _trail(modules, path))


def _reader(name: str, owner: nn.Module, key: str) -> Callable[[], Tensor]:
    parameters = owner._parameters

    def read() -> Tensor:
        tensor = parameters.get(key)
        if tensor is None:
            raise RuntimeError(
                f"parameter {name!r} is gone from its module; make a new merger for the new model"
            )
        return tensor

    return read


def _trail(modules: dict[str, nn.Module], path: str) -> tuple[Edge, ...]:
    trail = []
    while path:
        parent, _, key = path.rpartition(".")
        trail.append((modules[parent]._modules, key, modules[path]))
        path = parent
    return tuple(trail)


def _survey(model: nn.Module) -> _Survey:
    classes = _peft_classes()
    layers: list[Any] = [module for module in model.modules() if isinstance(module, classes)]
    holders: dict[int, Any] = {}
    active: dict[str, None] = {}
    for layer in layers:
        # A prompt-learning model keeps its prompts beside the layers, in ``prompt_encoder``.
        for path in getattr(layer, "adapter_layer_names", ("prompt_encoder",)):
            holder = _descend(layer, path)
            if isinstance(holder, (nn.ModuleDict, nn.ParameterDict)):
                holders[id(holder)] = holder
                active |= dict.fromkeys(layer.active_adapters)
        _require_unmerged(layer)
    paths = {name for name, module in model.named_modules() if id(module) in holders}
    known = dict.fromkeys(key for holder in holders.values() for key in holder)
    return _Survey(paths, known, active, [x for x in layers if hasattr(x, "merged_adapters")])


def _require_unmerged(layer: Any) -> None:
    merged = getattr(layer, "merged_adapters", None)
    if merged:
        raise ValueError(
            f"adapter {merged[0]!r} is merged into the base weights; call "
            "model.unmerge_adapter() first"
        )


def _peft_classes() -> tuple[type, ...]:
    """PEFT's layers; nothing can be one, and PEFT is not imported, unless somebody else has."""
    if "peft" not in sys.modules:
        return ()
    return (
        importlib.import_module("peft").PeftModel,
        importlib.import_module("peft.tuners.tuners_utils").BaseTunerLayer,
        importlib.import_module("peft.utils.other").AuxiliaryTrainingWrapper,
    )


def _descend(module: nn.Module, path: str) -> nn.Module | None:
    found: nn.Module | None = module
    for key in path.split("."):
        found = None if found is None else found._modules.get(key)
    return found


def _choose(adapters: str | Sequence[str] | None, survey: _Survey) -> list[str]:
    if adapters is None:
        return list(survey.active)
    names = [adapters] if isinstance(adapters, str) else adapters
    known = ", ".join(map(repr, sorted(survey.known))) or "none"
    if not isinstance(names, Sequence) or not names:
        raise ValueError(f"adapters={adapters!r} names no adapter; the model has: {known}")
    for name in names:
        if not isinstance(name, str) or name not in survey.known:
            raise ValueError(f"unknown adapter {name!r}; the model has: {known}")
    return list(names)
