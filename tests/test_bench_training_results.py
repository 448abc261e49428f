"""Ratios, shares and labels of bench/training_overhead.py, on made blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from training import results, settings, tables

CPU = torch.device("cpu")


def made(**changed: Any) -> dict[str, Any]:
    """A record of two repeats of 4 steps; the second took twice as long in every arm."""
    seconds = {"plain": 2.0, "replay": 2.0, "matched": 4.0, "released": 10.0}
    seconds |= {"released-lean": 6.0, "aim": 4.2}
    fields = {"steps": 4, "events": None, "waits": 1, "theta": "t", "task_rows": "r", "load": 0.5}
    rows = {"merges": 1, "memory_steps": 2, "history_rows": 32, "memory_rows": 16}
    made_of = [
        {"arm": arm, "repeat": n, "wall": 4 * s * (n + 1), "engine_seconds": 8e-5, **fields, **rows}
        for arm, s in seconds.items()
        for n in range(2)
    ]
    chosen = {"layers": 2, "history_rows": 8, "memory_rows": 8}
    chosen = {**settings.defaults(CPU, quick=False), **chosen}
    record = {
        "settings": settings.Settings(**chosen).to_dict(),
        "model": {"of_layers": 32, "parameters": 10, "entries": 5, "tensors": 1},
        "engine": {"backend": "native", "hook": 8.0, "merge": 40.0, "per_step": 18.0},
        "counts": [{"arm": "aim-before", "steps": 4, "method": 0, "training": 2}],
        "waits": [{"arm": f"aim-{p}", "steps": 16, "waits": w} for p, w in BOTH],
        "blocks": made_of,
    }
    for block in made_of:
        block.update(changed)
    return record


BOTH = (("before", 0), ("after", 8))


def test_ratios_are_paired_and_the_mixed_arm_is_stretched() -> None:
    case = results.summarise("llama2-7b", made(), CPU)
    assert case["seconds"]["plain"] == (2.0, 2.0, 4.0)
    assert case["seconds"]["replay"] == (2.04, 2.04, 4.08)
    # paired by repeat: the slow repeat slowed both
    assert case["ratios"] == {
        "plain": (2.1, 2.1, 2.1),
        "replay": (2.05882, 2.05882, 2.05882),
        "matched": (1.05, 1.05, 1.05),
    }
    slower = made()
    slower["blocks"][0]["wall"] *= 1.5  # plain, first repeat
    fastest = results.summarise("llama2-7b", slower, CPU)["ratios_of_minima"]
    assert fastest == {"plain": 1.4, "replay": 2.05882, "matched": 1.05}
    assert case["released_by_aim"] == (2.38095, 2.38095, 2.38095)
    assert case["rows"]["aim"]["history"] == 8
    assert case["rows"]["aim"]["memory"] == 4
    assert case["engine_us"]["in_loop"] == (20.0, 20.0, 20.0)
    assert case["engine_share"] == pytest.approx(20e-6 / 4.2, rel=1e-5)
    assert case["syncs_per_step"] == {"aim-before": {"method": 0.0, "training": 0.5}}
    assert "target at most 1.05" in tables.text(case)


def test_an_unfinished_repeat_does_not_count() -> None:
    record = made()
    record["blocks"].pop()
    case = results.summarise("llama2-7b", record, CPU)
    assert case["repeats"] == 1
    assert case["seconds"]["plain"] == (2.0, 2.0, 2.0)


def label(record: dict[str, Any], part: str, device: torch.device = CPU) -> bool:
    return any(part in one for one in results.summarise("llama2-7b", record, device)["labels"])


def test_labels() -> None:
    assert not label(made(), "noise")
    assert label(made(wall=3.9), "noise: a plain step took 0.975 s")
    assert label(made(load=1000.0), "busy machine: load average up to 1000.0")
    assert not label(made(), "busy")
    assert label(made(memory_rows=15), "AIM trained on 3.75 memory rows per step, matched were 4")
    wide = made()
    wide["blocks"][0]["wall"] *= 1.2  # plain, first repeat
    assert label(wide, "ratios are noise: greatest by least repeat of AIM by plain 1.20")
    odd = made()
    odd["blocks"][0]["theta"] = "other"
    assert label(odd, "an arm's repeats ended in different bits")


def test_labels_of_a_gpu() -> None:
    cuda = torch.device("cuda")
    assert not label(made(wall=3.9, events=3.8), "noise", cuda)
    assert label(made(wall=0.9, events=0.8), "noise: a plain block took 0.900 s", cuda)
    case = results.summarise("llama2-7b", made(events=3.6), cuda)
    assert case["events_seconds"]["aim"] == (0.9, 0.9, 0.9)
    assert case["waits_per_1000"] == {"before": 0.0, "after": 500.0, "steps": 16, "timed": 250.0}
    assert "CPU" not in case["labels"]
