"""TaSL against its formula in float64, and its four cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from aimmerge_fast.cl.methods import Stage
from aimmerge_fast.cl.methods.tasl import TaSL, normalised
from tests.cl.bare import FIRST, SECOND, Watch, begin, bench, run_updates, task, train
from tests.cl.tiny import make_config

THIRD = task("third", 3)
WEIGHTS = {(True, True): 0.3, (True, False): 0.0, (False, True): 1.0, (False, False): 0.5}


def unit_scores(scores: list[np.ndarray], unit: str) -> np.ndarray:
    """Parameters come as A, B, A, B; a rank-1 unit is row r of A and column r of B."""
    if unit == "matrix":
        return np.array([score.mean() for score in scores])
    pairs = zip(scores[::2], scores[1::2], strict=True)
    return np.array([np.outer(b[:, r], a[r]).mean() for a, b in pairs for r in range(len(a))])


def spread(units: np.ndarray, like: list[np.ndarray], unit: str) -> list[np.ndarray]:
    """Each entry's value of its unit."""
    if unit == "matrix":
        return [np.full_like(array, value) for array, value in zip(like, units, strict=True)]
    rank, made = len(like[0]), []
    for pair, (a, b) in enumerate(zip(like[::2], like[1::2], strict=True)):
        own = units[pair * rank : (pair + 1) * rank]
        made += [np.ones_like(a) * own[:, None], np.ones_like(b) * own[None, :]]
    return made


@pytest.mark.parametrize("unit", ["matrix", "rank1"])
def test_tasks_are_averaged_by_the_formula(unit: str) -> None:
    work = bench()
    tasl, watch = work.method("tasl", unit=unit), Watch(work.trainee)
    running: Any = None
    for index, data in enumerate((FIRST, SECOND, THIRD)):
        watch.forget()
        train(tasl, data, index, 10)
        entries, _ = watch.scores(0, 10)
        raw = unit_scores(entries, unit)
        new = (raw - raw.min()) / (raw.max() - raw.min())
        expected = watch.after[-1]
        if running is not None:
            old_is, new_is = (s > np.quantile(s, 0.8) for s in (running, new))
            units = np.array([WEIGHTS[pair] for pair in zip(old_is, new_is, strict=True)])
            weights = spread(units, expected, unit)
            expected = [
                w * now + (1 - w) * before
                for w, now, before in zip(weights, expected, watch.before[0], strict=True)
            ]
            running = 0.7 * running + 0.3 * new
        else:
            running = new
        assert np.allclose(tasl.state_dict()["past"].numpy(), running, rtol=0, atol=1e-5)
        for found, wanted in zip(work.trainee.parameters(), expected, strict=True):
            assert np.allclose(found.detach().numpy(), wanted, rtol=0, atol=1e-7)


def test_all_four_cells_occur() -> None:
    work = bench(rank=4)
    tasl = work.method("tasl", unit="rank1")
    for index, data in enumerate((FIRST, SECOND, THIRD)):
        train(tasl, data, index, 10)
    assert len(tasl.cells) == 2
    for cells in tasl.cells:
        assert sum(cells.values()) == 16  # 2 layers, q and v, rank 4
        assert cells["both"] + cells["new"] == cells["both"] + cells["old"] == 3  # the top 20 %
    assert all(sum(cells[name] for cells in tasl.cells) > 0 for name in ("both", "old", "new"))


def test_important_to_nobody_stays_in_the_middle() -> None:
    """Both scores level: nothing is above its own quantile."""
    work = bench(dropout=0.0)
    tasl = work.method("tasl")
    train(tasl, FIRST, 0, 4)
    stage = train(tasl, SECOND, 1, 0)  # no update: theta_t is theta_{t-1}
    assert tasl.cells == [{"both": 0, "old": 2, "new": 0, "neither": 6}]
    assert stage.name == "second"


def test_first_task_is_trained_plainly() -> None:
    ends = []
    for name in ("seqlora", "tasl"):
        work = bench()
        train(work.method(name), FIRST, 0, 5)
        ends.append([p.detach().clone() for p in work.trainee.parameters()])
    assert all(torch.equal(x, y) for x, y in zip(*ends, strict=True))


def test_importance_is_of_one_task() -> None:
    """What the first task's gradients were does not change the second's scores."""
    work = bench()
    tasl, watch = work.method("tasl"), Watch(work.trainee)
    train(tasl, FIRST, 0, 6)
    watch.forget()
    stage = Stage(SECOND.name, (SECOND,))
    begin(tasl, stage, 1)
    run_updates(tasl, stage, 1, 0, 6)
    expected, _ = watch.scores(0, 6)
    found = tasl._importance.scores()
    for mine, wanted in zip(found, expected, strict=True):
        assert np.allclose(mine.numpy(), wanted.ravel(), rtol=1e-4, atol=1e-12)


def test_normalised() -> None:
    scores = torch.tensor([2.0, 6.0, 4.0])
    assert normalised(scores).tolist() == [0.0, 1.0, 0.5]
    assert normalised(torch.full((3,), 7.0)).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 1.0}, r"beta=1\.0 must be a number in \[0, 1\)"),
        ({"quantile": -0.1}, r"quantile=-0\.1"),
        ({"unit": "row"}, "unit='row' is unknown; choose one of matrix, rank1"),
        ({"tau": 1}, "unknown setting 'tau'"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str, tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=message):
        TaSL.check(settings, make_config(tmp_path))
