"""Hypothesis strategies that several tests share."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from aimmerge_fast.config import AIMConfig


@st.composite
def protocol_configs(draw: st.DrawFn) -> AIMConfig:
    """Small intervals and windows, so that few steps reach every rule."""
    policy = draw(st.sampled_from(["paper", "released"]))
    schedule = draw(
        st.sampled_from(
            ["adaptive"] * 6 + ["monitor", "fixed", "rapid+", "slow+", "random", "at", "single"]
        )
    )
    fields: dict[str, Any] = {
        "s_min": 1,
        "s_init": draw(st.integers(1, 6)),
        "s_max": draw(st.integers(6, 12)),
        "s_switch": draw(st.sampled_from([2, 5, 64])),
        "f_max": draw(st.integers(1, 4)),
        "gamma_forget": draw(st.sampled_from([1.0, 1.25, 2.0])),
        "max_bad_probes": draw(st.sampled_from([2, 10])),
        "on_reject": draw(st.sampled_from(["raise", "continue"])),
        "alpha_new": draw(st.sampled_from([None, None, None, 0.25])),
        "seed": draw(st.integers(0, 9)),
    }
    if schedule == "random":
        fields["s_hi"] = 7
    if schedule == "at":
        fields["merge_at"] = (2, 3, 9)
    if policy == "released":
        fields |= {"cold_start": draw(st.integers(0, 3)), "s_weight": draw(st.integers(1, 6))}
    elif schedule == "adaptive":
        fields["window"] = draw(st.integers(1, 3))
        ablation = draw(st.sampled_from(["", "", "", "learning", "forgetting"]))
        if ablation:
            fields[f"use_{ablation}_signal"] = False
    return AIMConfig(policy=policy, schedule=schedule, probe="in_batch", **fields)
