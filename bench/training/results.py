"""The blocks of a backbone as one record: seconds, rows, ratios, counts and labels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from training.blocks import Block
from training.settings import Settings

#: Minutes per epoch on 8 V100-32GB, LoRAReplay and AIMMerging: the paper's Table 6.
TABLE6 = {
    "t5-large": (1.4, 1.4),
    "qwen3-1.7b": (3.3, 4.4),
    "llama2-7b": (4.5, 5.9),
    "llama2-13b": (6.6, 8.5),
}
#: Greatest by least repeat of a ratio from which on it is called noise.
_WIDE = 1.1
RATIOS = ("plain", "replay", "matched")
AIM, RELEASED = "aim", "released"
Spread = tuple[float, float, float]
Arms = dict[str, list[Block]]


def summarise(name: str, found: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """One record of a backbone; a spread is the least, the median and the greatest repeat.

    Seconds are for as many task rows as plain LoRA's batch holds, so the mixed arm's step is
    stretched by what its epoch is longer.
    """
    settings = Settings(**found["settings"])
    arms = _by_arm(found)
    seconds = {arm: _seconds(arm, blocks, settings) for arm, blocks in arms.items()}
    minutes = TABLE6.get(name)
    record = {
        "backbone": name,
        "layers": settings.layers or found["model"]["of_layers"],
        **found["model"],
        "settings": found["settings"],
        "repeats": len(arms[AIM]),
        "seconds": {arm: spread(values) for arm, values in seconds.items()},
        "events_seconds": {arm: _events(blocks) for arm, blocks in arms.items()},
        "rows": {arm: _rows(blocks) for arm, blocks in arms.items()},
        "ratios": {arm: _ratio(seconds[AIM], seconds[arm]) for arm in RATIOS},
        "ratios_of_minima": {arm: _six(min(seconds[AIM]) / min(seconds[arm])) for arm in RATIOS},
        "released_by_aim": _ratio(seconds[RELEASED], seconds[AIM]),
        "table6": _six(minutes[1] / minutes[0]) if minutes else None,
        "engine_us": _engine(found["engine"], arms[AIM]),
        "syncs_per_step": _syncs(found),
        "waits_per_1000": _waits(found, arms[AIM]),
        "phases": found.get("phases", []),
    }
    share = record["engine_us"]["in_loop"][1] / 1e6 / record["seconds"][AIM][1]
    return {**record, "engine_share": _six(share), "labels": _labels(record, arms, device)}


def spread(values: Sequence[float]) -> Spread:
    """Least, median (of an even number the lower one) and greatest."""
    ordered = sorted(values)
    least, median, most = ordered[0], ordered[(len(ordered) - 1) // 2], ordered[-1]
    return _six(least), _six(median), _six(most)


def _by_arm(found: dict[str, Any]) -> Arms:
    """Blocks of the repeats that every arm has finished, in order."""
    blocks = sorted((Block(**block) for block in found["blocks"]), key=lambda b: b.repeat)
    names = list(dict.fromkeys(b.arm for b in blocks))
    whole = set.intersection(*({b.repeat for b in blocks if b.arm == name} for name in names))
    return {name: [b for b in blocks if b.arm == name and b.repeat in whole] for name in names}


def _seconds(arm: str, blocks: list[Block], settings: Settings) -> list[float]:
    stretch = settings.mixed_stretch if arm == "replay" else 1.0
    return [block.wall / block.steps * stretch for block in blocks]


def _events(blocks: list[Block]) -> Spread | None:
    """Seconds per step by the GPU's own clock."""
    values = [b.events / b.steps for b in blocks if b.events is not None]
    return spread(values) if values else None


def _ratio(above: list[float], below: list[float]) -> Spread:
    """Paired by repeat: what disturbed a repeat disturbed both of its blocks."""
    return spread([one / other for one, other in zip(above, below, strict=True)])


def _rows(blocks: list[Block]) -> dict[str, float]:
    """Rows per step: ``history`` forward only, ``memory`` trained on; merges and M per block."""
    steps = sum(b.steps for b in blocks)
    return {
        "history": _six(sum(b.history_rows for b in blocks) / steps),
        "memory": _six(sum(b.memory_rows for b in blocks) / steps),
        "merges": _six(sum(b.merges for b in blocks) / len(blocks)),
        "memory_steps": _six(sum(b.memory_steps for b in blocks) / len(blocks)),
    }


def _engine(alone: dict[str, Any], blocks: list[Block]) -> dict[str, Any]:
    in_loop = spread([b.engine_seconds / b.steps * 1e6 for b in blocks])
    times = {key: _six(alone[key]) for key in ("hook", "merge", "per_step")}
    return {"backend": alone["backend"], **times, "in_loop": in_loop}


def _syncs(found: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {
        one["arm"]: {key: _six(one[key] / one["steps"]) for key in ("method", "training")}
        for one in found["counts"]
    }


def _waits(found: dict[str, Any], blocks: list[Block]) -> dict[str, Any]:
    """Waits per 1,000 steps by probe mode, over how many steps, and in the timed blocks."""
    # a CPU, which answers at once, was not run once more for them
    counted = found["waits"] or [one for one in found["counts"] if one["arm"].startswith("aim-")]
    modes = {one["arm"].removeprefix("aim-"): one for one in counted}
    rates = {mode: _six(1000 * one["waits"] / one["steps"]) for mode, one in modes.items()}
    return {**rates, "steps": modes["before"]["steps"], "timed": _per_1000(blocks)}


def _per_1000(blocks: list[Block]) -> float:
    return _six(1000 * sum(b.waits for b in blocks) / sum(b.steps for b in blocks))


def _labels(record: dict[str, Any], arms: Arms, device: torch.device) -> list[str]:
    """What has to be said beside every figure of this backbone."""
    found = ["random weights", "timed, not trained: the quality at these rows is not known"]
    cpu = device.type == "cpu"
    if cpu:
        found.insert(0, "CPU")
    if record["settings"].get("graphs"):
        found.append("passes are CUDA graphs")
    if record["layers"] < record["of_layers"]:
        found.append(f"{record['layers']} of {record['of_layers']} layers")
    if record["repeats"] < 3:
        found.append(f"few repeats: {record['repeats']}")
    plain = record["seconds"]["plain"][0]  # the fastest: a busy machine makes any step long
    what, lasted = ("step", plain) if cpu else ("block", plain * record["settings"]["steps"])
    if lasted < 1.0:
        found.append(f"ratios are noise: a plain {what} took {lasted:.3f} s, less than 1 s")
    ratios = record["ratios"].items()
    wide = [f"{arm} {most / least:.2f}" for arm, (least, _, most) in ratios if most > _WIDE * least]
    if wide:
        found.append(f"ratios are noise: greatest by least repeat of AIM by {', '.join(wide)}")
    load, cores = max(b.load for blocks in arms.values() for b in blocks), os.cpu_count() or 1
    if load > cores + 0.5:
        found.append(f"busy machine: load average up to {load:.1f} on {cores} cores")
    used, meant = record["rows"][AIM]["memory"], record["settings"]["memory_rows"] / 2
    if used != meant:
        found.append(f"AIM trained on {used:g} memory rows per step, matched were {meant:g}")
    if cpu and any(len({b.theta for b in blocks}) > 1 for blocks in arms.values()):
        found.append("an arm's repeats ended in different bits")
    return found


def _six(value: float) -> float:
    """Six significant digits: more than any clock gives."""
    return float(f"{value:.6g}")
