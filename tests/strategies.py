"""Hypothesis strategies that several tests share."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import strategies as st

from aimmerge_fast.config import AIMConfig

OTHERS = ("monitor", "fixed", "rapid+", "slow+", "random", "at", "single")


def protocol_config(seed: int) -> AIMConfig:
    """Small intervals and windows, so that few steps reach every rule; one of many by number."""
    dice = random.Random(seed)
    policy = dice.choice(["paper", "released"])
    schedule = "adaptive" if dice.random() < 0.75 else dice.choice(OTHERS)
    fields: dict[str, Any] = {
        "s_min": 1,
        "s_init": dice.choice([1, 2, 3, 4, 6, 9]),
        "s_max": dice.randint(9, 14),
        "s_switch": dice.choice([2, 5, 64]),
        "f_max": dice.randint(1, 4),
        "gamma_forget": dice.choice([1.0, 1.25, 2.0]),
        "max_bad_probes": dice.choice([2, 10]),
        "on_reject": dice.choice(["raise", "continue"]),
        "alpha_new": dice.choice([None, None, None, 0.25]) if schedule != "monitor" else None,
        "seed": dice.randint(0, 9),
    }
    if schedule == "random":
        fields["s_hi"] = 7
    if schedule == "at":
        fields["merge_at"] = (2, 3, 9)
    if policy == "released":
        fields |= {"cold_start": dice.randint(0, 3), "s_weight": dice.randint(1, 6)}
        fields |= {"outer_init": dice.randint(1, 6)}
    elif schedule == "adaptive":
        fields["window"] = dice.randint(1, 3)
        ablation = dice.choice(["", "", "", "learning", "forgetting"])
        if ablation:
            fields[f"use_{ablation}_signal"] = False
        elif fields["alpha_new"] is None:
            fields["alpha_floor"] = dice.choice([0.0, 0.0, 0.25])
    return AIMConfig(policy=policy, schedule=schedule, probe="in_batch", **fields)


def protocol_configs() -> st.SearchStrategy[AIMConfig]:
    """Spread evenly, which hypothesis' own choices are not."""
    return st.integers(0, 1 << 32).map(protocol_config)
