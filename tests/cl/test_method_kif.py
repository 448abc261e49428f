"""Recurrent-KIF and +IFM against their formulas, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from aimmerge_fast import fusion
from aimmerge_fast.cl.methods import method_class
from aimmerge_fast.events import Open
from aimmerge_fast.report import summarise
from tests.cl.bare import FIRST, SECOND, Bench, Watch, adapter, bench, train
from tests.cl.tiny import make_config

Q, M = 8, 4  # updates and memory steps of a round


def flat(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([array.ravel() for array in arrays])


def fused(anchor: Any, middle: Any, end: Any, new: Any, past: Any) -> np.ndarray:
    """B.13 over all entries at once."""
    is_new = new > np.quantile(new, 0.8)
    is_past = past > np.quantile(past, 0.8)
    w_new = np.select([is_new & is_past, is_new, is_past], [0.4, 1.0, 0.0], 0.5)
    w_past = np.select([is_new & is_past, is_new, is_past], [0.6, 0.0, 1.0], 0.5)
    result: np.ndarray = anchor + w_new * (middle - anchor) + w_past * (end - middle)
    return result


def test_rounds_follow_the_formula() -> None:
    """Two rounds: new begins anew after each, past goes on through the task."""
    work = bench()
    kif = work.method("kif")
    train(kif, FIRST, 0, 6)
    watch = Watch(work.trainee)
    train(kif, SECOND, 1, 2 * Q)
    assert len(watch.before) == 2 * (Q + M)
    past: Any = None
    for start in (0, Q + M):
        middle, end = start + Q, start + Q + M
        new_scores, _ = watch.scores(start, middle)
        past_scores, past = watch.scores(middle, end, past)
        expected = fused(
            flat(watch.before[start]),
            flat(watch.after[middle - 1]),
            flat(watch.after[end - 1]),
            flat(new_scores),
            flat(past_scores),
        )
        last = start > 0
        now = [p.detach().double().numpy() for p in work.trainee.parameters()]
        found = flat(now) if last else flat(watch.before[end])
        assert np.allclose(found, expected, rtol=0, atol=2e-7)
        assert not np.allclose(found, flat(watch.after[middle - 1]), rtol=0, atol=1e-5)


def test_a_fifth_of_the_entries_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    weigh = fusion.kernels.weighted_

    def spy(
        live: Any, anchor: Any, mid: Any, new: Any, past: Any, limits: Any, *rest: Any, **k: Any
    ):
        for side, limit in ((new, limits[0]), (past, limits[1])):
            scores = np.concatenate([score.numpy() for score in side.scores()])
            shares.append(float((scores > limit.item()).mean()))
        return weigh(live, anchor, mid, new, past, limits, *rest, **k)

    monkeypatch.setattr(fusion.kernels, "weighted_", spy)
    work = bench()
    kif = work.method("kif")
    train(kif, FIRST, 0, 3)
    train(kif, SECOND, 1, 2 * Q)
    assert len(shares) == 4
    assert all(0.199 < share < 0.201 for share in shares)


def opened(work: Bench) -> list[Open]:
    return [event for event in work.events if isinstance(event, Open)]


def test_kif_fuses_every_eight_updates_after_four_memory_steps() -> None:
    work = bench()
    kif = work.method("kif")
    train(kif, FIRST, 0, 3)
    train(kif, SECOND, 1, 25)
    assert [(e.step, e.memory_steps) for e in opened(work)] == [(Q, M), (2 * Q, M), (3 * Q, M)]
    assert work.trainee.rows["memory"] == 3 * M * 4
    report = summarise(work.events)
    assert report.count("no_op") == 0  # alpha, (1, 0) here, is not what weighs
    assert report.merges["due"] == kif.merges() == 3


def test_ifm_fuses_when_aimmerging_would() -> None:
    """Until the first merge both train alike; then the results differ."""
    ends = []
    for name in ("aim-ifm", "aim"):
        work = bench()
        method = work.method(name, s_init=4)
        train(method, FIRST, 0, 3)
        train(method, SECOND, 1, 8)
        ends.append((opened(work), adapter(work.trainee)))
    (mine, now), (theirs, other) = ends
    assert [e.step for e in mine] == [e.step for e in theirs] == [8]
    assert mine[0].l1 == theirs[0].l1
    assert any(not torch.equal(now[name], other[name]) for name in now)


@pytest.mark.parametrize("name", ["kif", "aim-ifm"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantile": 1.5}, r"quantile=1\.5 must be a number from 0 to 1"),
        ({"beta": "high"}, "beta='high' must be a number"),
        ({"alpha_new": 0.5}, "unknown setting 'alpha_new'"),
        ({"alfa": 1}, "settings are .*beta.*quantile"),
    ],
)
def test_bad_settings(name: str, settings: dict[str, Any], message: str, tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=message):
        method_class(name).check(settings, make_config(tmp_path))
