"""The model as CUDA graphs, one for each shape of batch: for backbones that launches bound.

Every arm runs the same model, so every arm gains. Merges write the adapter where it lies, so a
captured graph sees them and need not be captured again.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from training.data import Batch


class Graphed(nn.Module):
    """Replays the forward and the backward pass of ``model``, captured at the first batch of a
    shape, for training and evaluation apart."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        # a dict, not children: each holds the whole model once more
        self._captured: dict[tuple[object, ...], nn.Module] = {}

    def forward(self, **batch: Tensor) -> SimpleNamespace:
        key = (self.training, *(tensor.shape for tensor in batch.values()))
        if key not in self._captured:
            self._captured[key] = self._capture(batch)
        return SimpleNamespace(loss=self._captured[key](*batch.values()))

    def _capture(self, batch: Batch) -> nn.Module:
        samples = tuple(tensor.clone() for tensor in batch.values())
        capture: Any = torch.cuda.make_graphed_callables
        with torch.enable_grad():  # a probe may come first
            made: nn.Module = capture(_Loss(self.model, list(batch)), samples)
        return made


class _Loss(nn.Module):
    """The loss alone: what a graph takes and gives are tensors."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self._names = model, names

    def forward(self, *tensors: Tensor) -> Tensor:
        loss: Tensor = self.model(**dict(zip(self._names, tensors, strict=True))).loss
        return loss
