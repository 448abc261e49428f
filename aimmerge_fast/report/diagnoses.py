"""What the merges of a task say about its settings, and what to try."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aimmerge_fast.events import Open

#: Fewest merges that a diagnosis needs, and how many of the newest it looks at.
FEWEST, RECENT = 4, 8


def diagnose(merges: Sequence[Open], config: Mapping[str, Any]) -> tuple[str, ...]:
    """One sentence per finding, none where the settings leave nothing to find.

    ``config``: of the task's ``TaskBegin``; empty when unknown, which silences oscillation.
    """
    if config.get("schedule", "adaptive") != "adaptive":
        return ()
    found = (_oscillation(merges, config), _stagnation(merges, config), _idle(merges, config))
    return tuple(sentence for sentence in found if sentence)


def _oscillation(merges: Sequence[Open], config: Mapping[str, Any]) -> str | None:
    """S was at s_min before and after each of the last merges, none of them in the cold start.

    A cold-start merge keeps S whatever it saw, so it is no sign of being stuck.
    """
    s_min = config.get("s_min")
    adapts = config.get("use_learning_signal", True) and config.get("adaptive", True)
    if s_min is None or s_min == config.get("s_max") or not adapts:
        return None
    stuck = 0
    for merge in reversed(merges):
        if merge.cold or not merge.S == merge.next_S == s_min:
            break
        stuck += 1
    if stuck < FEWEST:
        return None
    forgets = config.get("use_forgetting_signal", True)
    remedies = f"s_min{' or gamma_forget' if forgets else ''}, or lower the learning rate"
    return (
        f"oscillation: in each of the last {stuck} merges S stayed at s_min = {s_min}, so the "
        f"model is merged as often as allowed and does not settle; raise {remedies}"
    )


def _stagnation(merges: Sequence[Open], config: Mapping[str, Any]) -> str | None:
    """alpha_past outweighs alpha_new in the mean, or half of the merges drop their interval."""
    recent = merges[-RECENT:]
    constant = config.get("alpha_new") is not None
    if len(recent) < FEWEST or constant:
        return None
    mean = sum(merge.alpha_past for merge in recent) / len(recent)
    discarding = sum((m.alpha_new, m.alpha_past) == (0.0, 1.0) for m in recent)
    if mean <= 0.5 and 2 * discarding < len(recent):
        return None
    if config.get("policy") == "released":
        remedies = "raise s_weight or gamma_forget"
    else:
        verb = "raise" if config.get("alpha_floor") else "set"
        remedies = f"{verb} alpha_floor (0.2, say), raise gamma_forget"
    dropped = f" and {discarding} of them dropped the new progress" if discarding else ""
    return (
        f"stagnation: alpha_past averaged {mean:.2f} over the last {len(recent)} merges{dropped}, "
        f"so the past outweighs what the task learns; {remedies}, or raise the learning rate"
    )


def _idle(merges: Sequence[Open], config: Mapping[str, Any]) -> str | None:
    """Every merge kept theta_j: F was 0 each time, so Eq. 8 gave alpha = (1, 0)."""
    unchanged = sum((merge.alpha_new, merge.alpha_past) == (1.0, 0.0) for merge in merges)
    if len(merges) < FEWEST or unchanged < len(merges) or config.get("alpha_new") is not None:
        return None
    return (
        f"no effect: all {len(merges)} merges had alpha = (1, 0), because no history loss passed "
        "the threshold, so the model trained as if alone; lower gamma_forget or set alpha_floor"
    )
