"""Recurrent-KIF (algorithm.md B.13): fixed rounds, fused entry by entry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from aimmerge_fast.cl.config import RunConfig
from aimmerge_fast.cl.methods.aim import AIMMerging
from aimmerge_fast.config import AIMConfig
from aimmerge_fast.fusion import EntryFusion


class EntryWise(AIMMerging):
    """A merging method whose weights are those of each entry's importance.

    ``quantile`` [0.8] and ``beta`` [0.85] are `EntryFusion`'s; the others are ``AIMConfig``'s.
    """

    fixed: ClassVar[Mapping[str, Any]] = {"alpha_new": 1.0}
    defaults: ClassVar[Mapping[str, Any]] = {"quantile": 0.8, "beta": 0.85}

    @classmethod
    def aim_config(cls, settings: Mapping[str, Any], config: RunConfig, seed: int) -> AIMConfig:
        entry_fusion(settings)
        return super().aim_config(settings, config, seed)

    def fusion(self) -> EntryFusion:
        return entry_fusion(self.settings)


class RecurrentKIF(EntryWise):
    """Every ``s_init`` [8] updates half as many memory steps with the same optimiser, then fuse."""

    label = "Recurrent-KIF"
    summary = "fixed rounds, entries weighted by their importance to new and past"
    fixed: ClassVar[Mapping[str, Any]] = {"schedule": "fixed", "alpha_new": 1.0}


def entry_fusion(settings: Mapping[str, Any]) -> EntryFusion:
    """The fusion that the settings describe; ``ValueError`` names one that is out of range."""
    return EntryFusion(**{k: settings[k] for k in EntryWise.defaults if k in settings})
