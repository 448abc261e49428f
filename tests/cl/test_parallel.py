"""Two processes on one run give what one process gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from aimmerge_fast.cl import parallel, runner
from aimmerge_fast.cl.parallel import Ranks
from aimmerge_fast.durable.tree import load_tree
from tests.cl.rank_worker import ARMS, SETTINGS
from tests.cl.tiny import make_config, make_data, make_model

ROOT = Path(__file__).resolve().parents[2]
FINISHED = ("replay-s42", "aim-s_init=2-s42", "random-match=aim-s_init=2-s42")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one process in ``alone``, of two in ``ranks`` and ``resumed``."""
    folder = tmp_path_factory.mktemp("parallel")
    make_model(folder / "model")
    make_data(folder / "data")
    torch.set_num_threads(1)
    runner.run(make_config(folder, ARMS, out=folder / "alone", **SETTINGS))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    worker = str(ROOT / "tests/cl/rank_worker.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, worker, str(folder)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return [load_tree(folder / f"rank{rank}.safetensors") for rank in (0, 1)]


def state(folder: Path, run: str, arm: str) -> dict[str, Any]:
    return load_tree(folder / run / arm / "state.safetensors")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_ranks_hold_the_same_bits(ranks: list[dict[str, Any]]) -> None:
    assert [rank["report"]["world"] for rank in ranks] == [2, 2]
    mine, theirs = (rank["adapters"] for rank in ranks)
    assert len(mine) == 9  # three arms, one of them in two parts, two single tasks of two runs
    assert mine.keys() == theirs.keys()
    for held in mine:
        for name, tensor in mine[held].items():
            assert torch.equal(tensor, theirs[held][name]), (held, name)
    assert ranks[0]["report"]["results"] == ranks[1]["report"]["results"]


@pytest.mark.parametrize("arm", FINISHED)
def test_two_processes_train_what_one_does(folder: Path, arm: str) -> None:
    alone, both = (state(folder, run, arm)["adapter"] for run in ("alone", "ranks"))
    moved = 0.0
    for name, tensor in alone.items():
        torch.testing.assert_close(both[name], tensor, rtol=0, atol=1e-5)
        moved = max(moved, float(tensor.abs().max()))
    assert moved > 0.01  # something was trained


@pytest.mark.parametrize("arm", FINISHED)
def test_two_processes_say_what_one_does(folder: Path, arm: str) -> None:
    alone, both = (
        json.loads((folder / run / arm / "arm.json").read_text()) for run in ("alone", "ranks")
    )
    for key in ("scores", "single", "rows", "metrics", "stages", "settings", "finished"):
        assert both[key] == alone[key], key
    for stage, losses in alone["losses"].items():
        assert both["losses"][stage] == pytest.approx(losses, abs=1e-5)
    for place in ("1-first/first", "2-second/first", "2-second/second"):
        found = [lines(folder / r / arm / f"predictions/{place}.jsonl") for r in ("alone", "ranks")]
        assert found[0] == found[1]
        assert len(found[0]) == 5


@pytest.mark.parametrize("arm", FINISHED[1:])
def test_two_processes_decide_what_one_does(folder: Path, arm: str) -> None:
    alone, both = (lines(folder / run / arm / "events.jsonl") for run in ("alone", "ranks"))
    assert sum(event["event"] == "close" for event in alone) >= 1
    assert len(alone) == len(both)
    for one, two in zip(alone, both, strict=True):
        for key, value in one.items():
            expected = pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
            assert two[key] == expected, (one, two)


def test_a_resumed_run_of_two_processes_goes_on_to_the_same_bits(folder: Path) -> None:
    arm = FINISHED[1]
    resumed, whole = (state(folder, run, arm) for run in ("resumed", "ranks"))
    assert resumed["adapter"].keys() == whole["adapter"].keys()
    for name, tensor in whole["adapter"].items():
        assert torch.equal(resumed["adapter"][name], tensor), name
    assert (folder / "resumed" / arm / "events.jsonl").read_bytes() == (
        folder / "ranks" / arm / "events.jsonl"
    ).read_bytes()


def test_only_rank_0_writes(ranks: list[dict[str, Any]]) -> None:
    assert ranks[1]["report"]["written"] == []
    written = "\n".join(ranks[0]["report"]["written"])
    assert all(name in written for name in ("run.json", "state.safetensors", "adapters", "plain"))


# ---- in one process ------------------------------------------------------------------------


def test_one_process_exchanges_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Ranks()
    for name in ("all_reduce", "broadcast", "broadcast_object_list", "all_gather_object"):
        monkeypatch.setattr(torch.distributed, name, None)
    assert (alone.rank, alone.world, alone.is_main) == (0, 1, True)
    parameter = torch.nn.Parameter(torch.ones(2))
    with alone.equal_steps():
        alone.add_gradients([parameter])
    assert parameter.grad is None
    assert alone.share([1, 2, 3]) == alone.gather([1, 2, 3], 3) == [1, 2, 3]
    assert alone.from_main(lambda: 7) == 7
    value = torch.tensor(2.0)
    assert alone.total(value) is value
    assert alone.of_main(value) is value


def test_more_processes_than_gpus_is_refused() -> None:
    parallel._require_devices(2, 2)
    with pytest.raises(ValueError, match=r"3 processes on a machine with 2 GPUs.*nproc-per-node 2"):
        parallel._require_devices(3, 2)


def test_gathering_undoes_dealing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    items = list("abcdefg")
    parts = [items[0::3], items[1::3], items[2::3]]

    def gather(into: list[Any], mine: list[str]) -> None:
        into[:] = parts

    ranks = Ranks()
    ranks.rank, ranks.world = 1, 3
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    assert ranks.share(items) == ["b", "e"]
    assert ranks.gather(ranks.share(items), 7) == items


def test_a_step_takes_the_gradients_of_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    def broadcast(flat: Tensor, source: int) -> None:
        assert source == 0
        flat.fill_(3.0)  # rank 0 has these

    ranks = Ranks()
    ranks.rank, ranks.world = 1, 2
    monkeypatch.setattr(torch.distributed, "broadcast", broadcast)
    parameter, other = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter, other], lr=1.0)
    with ranks.equal_steps():
        parameter.grad = torch.ones(2)
        optimizer.step()
    assert parameter.tolist() == [-3.0, -3.0]
    assert other.tolist() == [0.0]  # nothing was learned about it
    optimizer.step()  # outside: its own again, still 3
    parameter.grad = torch.ones(2)
    optimizer.step()
    assert parameter.tolist() == [-7.0, -7.0]


def test_an_error_of_rank_0_is_raised_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def broadcast(box: list[Any]) -> None:
        box[:] = [None, ValueError("no such thing")]

    ranks = Ranks()
    ranks.rank, ranks.world = 1, 2
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast)
    with pytest.raises(ValueError, match="no such thing"):
        ranks.from_main(lambda: pytest.fail("rank 1 asks rank 0"))
