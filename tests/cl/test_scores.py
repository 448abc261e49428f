"""Scores of a run that learns something: the matrix is that of the predictions on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aimmerge_fast.cl.runner import run
from tests.cl.tiny import make_config, make_data, make_model


def share_right(path: Path) -> float:
    """Exact match by hand: lower case, stripped."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    right = [r["prediction"].strip().lower() == r["reference"].strip().lower() for r in rows]
    return 100 * sum(right) / len(right)


def test_the_matrix_is_that_of_the_predictions(tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    make_data(tmp_path / "data")
    settings = {"steps": 60, "lr": 0.03, "rank": 8, "evaluate": "all", "initial": True}
    settings |= {"save_every": 60, "log_every": 60, "single": True}
    results = run(make_config(tmp_path, "seqlora", **settings))
    (arm,) = results["arms"]
    folder = tmp_path / "out" / arm["folder"] / "predictions"
    stages = ("1-first", "2-second")
    matrix = [[share_right(folder / s / f"{t}.jsonl") for t in ("first", "second")] for s in stages]
    assert arm["scores"] == [[pytest.approx(value) for value in row] for row in matrix]
    seen = {value for row in matrix for value in row}
    assert len(seen) > 2  # or the places could be mixed up unseen
    assert matrix[0][0] != matrix[1][0]
    metrics = arm["metrics"]
    assert metrics["OP"] == pytest.approx((matrix[1][0] + matrix[1][1]) / 2)
    assert metrics["BWT"] == pytest.approx(matrix[1][0] - matrix[0][0])
    single = arm["single"]
    assert single[0] == pytest.approx(matrix[0][0])  # the first stage is that training
    assert metrics["FWT"] == pytest.approx((matrix[1][1] - single[1]) / 2)
