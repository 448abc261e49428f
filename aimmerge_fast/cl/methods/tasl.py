"""TaSL (algorithm.md B.11): each skill unit keeps what its importance to old and new says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from aimmerge_fast import kernels
from aimmerge_fast.cl.config import RunConfig
from aimmerge_fast.cl.methods.base import Method, Stage, Trainee

#: Weight of the new parameters in a unit that is important to old and new, old, new, neither.
CELLS = {"both": 0.3, "old": 0.0, "new": 1.0, "neither": 0.5}
UNITS = ("matrix", "rank1")
_KEPT = 0.7  # of the running score, at each task


class TaSL(Method):
    """Plain training; after each task theta_t is averaged with theta_{t-1}, unit by unit.

    An entry's importance is S * U, the running averages (``beta`` [0.85]) of u = |theta gradient|
    and of |u - S| over the task's updates. A unit's score is its mean, min-max normalised over the
    units; the score of the tasks before is 0.7 old + 0.3 new. Units above the ``quantile`` [0.8]
    of a score are important. ``unit`` [matrix]: each A and each B; ``rank1``: row r of A with
    column r of B, whose score is the mean of the outer product.
    """

    label = "TaSL"
    summary = "after each task, old and new averaged by the importance of each matrix"
    first_stage_is_plain = False  # its importance is measured, too
    defaults: ClassVar[Mapping[str, Any]] = {"beta": 0.85, "quantile": 0.8, "unit": "matrix"}

    def __init__(self, trainee: Trainee, settings: Mapping[str, Any]) -> None:
        super().__init__(trainee, settings)
        self._importance = kernels.new_importance(trainee.parameters())
        self._start: list[Tensor] = []  # theta_{t-1}
        self._past: Tensor | None = None  # (units,) running score of the tasks before
        #: Units by cell, for each task but the first.
        self.cells: list[dict[str, int]] = []

    @classmethod
    def check(cls, settings: Mapping[str, Any], config: RunConfig) -> None:
        super().check(settings, config)
        chosen = {**cls.defaults, **settings}
        for name in ("beta", "quantile"):
            value = chosen[name]
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
                raise ValueError(f"{name}={value!r} must be a number in [0, 1)")
        if chosen["unit"] not in UNITS:
            raise ValueError(
                f"unit={chosen['unit']!r} is unknown; choose one of {', '.join(UNITS)}"
            )

    def begin_stage(self, stage: Stage, index: int) -> None:
        self._importance.reset_()
        self._start = [p.detach().clone() for p in self.trainee.parameters()]

    def after_backward(self) -> None:
        parameters, beta = self.trainee.parameters(), self.settings["beta"]
        kernels.importance_(
            parameters,
            [p.grad for p in parameters],
            self._importance.sensitivity,
            self._importance.uncertainty,
            beta,
            beta,
        )

    @torch.no_grad()
    def end_stage(self, stage: Stage, index: int) -> None:
        units = self._units()
        scores = [
            score.view_as(p)
            for score, p in zip(self._importance.scores(), self.trainee.parameters(), strict=True)
        ]
        new = normalised(torch.stack([_score(unit, scores) for unit in units]))
        if self._past is None:
            self._past = new
            return
        cells = self._cells(new)
        for unit, cell in zip(units, cells, strict=True):
            for number, part in unit:
                self._average(number, part, CELLS[cell])
        self.cells.append({cell: cells.count(cell) for cell in CELLS})
        self._past = _KEPT * self._past + (1 - _KEPT) * new

    def state_dict(self) -> dict[str, Any]:
        return {
            "importance": self._importance.state_dict(),
            "start": self._start,
            "past": self._past,
            "cells": self.cells,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        device = self.trainee.device
        self._importance.load_state_dict(state["importance"])
        self._start = [tensor.to(device) for tensor in state["start"]]
        self._past = None if state["past"] is None else state["past"].to(device)
        self.cells = list(state["cells"])

    # ---- internals -------------------------------------------------------------------------

    def _cells(self, new: Tensor) -> list[str]:
        """Each unit's cell; important is what lies above the quantile."""
        assert self._past is not None  # of the first task
        q = self.settings["quantile"]
        old, now = ((s > torch.quantile(s, q)).tolist() for s in (self._past, new))
        names = {(True, True): "both", (True, False): "old", (False, True): "new"}
        return [names.get(pair, "neither") for pair in zip(old, now, strict=True)]

    def _average(self, number: int, part: _Part, weight: float) -> None:
        """theta <- weight theta_t + (1 - weight) theta_{t-1} in a part of parameter ``number``."""
        here = part(self.trainee.parameters()[number].detach())
        here.copy_(weight * here + (1 - weight) * part(self._start[number]))

    def _units(self) -> list[_Unit]:
        names = [n for n, p in self.trainee.model.named_parameters() if p.requires_grad]
        if self.settings["unit"] == "matrix":
            return [[(number, _whole)] for number in range(len(names))]
        pairs = [
            (number, names.index(name.replace(".lora_A.", ".lora_B.")))
            for number, name in enumerate(names)
            if ".lora_A." in name
        ]
        rank = self.trainee.config.rank
        return [[(a, _row(r)), (b, _column(r))] for a, b in pairs for r in range(rank)]


_Part = Callable[[Tensor], Tensor]  # a view of a parameter
_Unit = list[tuple[int, _Part]]  # (number of the parameter, what of it)


def normalised(scores: Tensor) -> Tensor:
    """To [0, 1] over the units; equal scores become 0."""
    low, high = scores.min(), scores.max()
    return (scores - low) / torch.where(high > low, high - low, torch.ones_like(high))


def _score(unit: _Unit, scores: list[Tensor]) -> Tensor:
    """() mean over the unit's entries; of an outer product, that is the product of the means."""
    means = [part(scores[number]).mean() for number, part in unit]
    return torch.stack(means).prod()


def _whole(tensor: Tensor) -> Tensor:
    return tensor


def _row(r: int) -> _Part:
    return lambda tensor: tensor[r]


def _column(r: int) -> _Part:
    return lambda tensor: tensor[:, r]
