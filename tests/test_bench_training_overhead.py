"""bench/training_overhead.py from its command line: what it prints, keeps, labels and refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import training_overhead
from overhead.gate import GateError
from training import arms, blocks, check, measure
from training.blocks import Block
from training.store import Store

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
CPU = torch.device("cpu")
COMMAND = ["--backbone", "llama2-7b", "--device", "cpu", "--quick", "--seq", "8", "--batch", "3"]
NAMES = [kind.name for kind in blocks.ARMS]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The command on the small model of the family, in a folder of its own."""

    def set_up(name: str, chosen: Any, device: torch.device, _: torch.dtype) -> arms.Setup:
        return arms.set_up_small(name, chosen, device)

    monkeypatch.setattr(measure, "set_up", set_up)
    monkeypatch.setattr(measure, "_ENGINE_SECONDS", 0.0)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def unchecked(small: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same without the checks, which take longer than the rest."""
    monkeypatch.setattr(check, "run", lambda _: [])
    return small


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return record


def stored(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((path / "out.json").read_text())
    return record


def test_last_line_is_the_record(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert training_overhead.main([*COMMAND, "--threads", "1", "--json", "out.json"]) == 0
    record = last_line(capsys)
    assert record["device"].endswith("1 threads")
    assert list(record) == ["device", "driver", "versions", "commits", "cases"]
    assert {"torch", "triton", "transformers", "peft"} <= set(record["versions"])
    (case,) = record["cases"]
    assert list(case["seconds"]) == list(case["rows"]) == NAMES
    assert list(case["ratios"]) == ["plain", "replay", "matched"]
    assert case["rows"]["aim"] == {"history": 3, "memory": 1.5, "merges": 1, "memory_steps": 2}
    assert case["rows"]["matched"]["memory"] == 3
    for arm in NAMES:
        least, median, most = case["seconds"][arm]
        assert 0 < least <= median <= most
    assert case["table6"] == pytest.approx(5.9 / 4.5, rel=1e-5)
    assert case["syncs_per_step"]["aim-before"] == {"method": 0, "training": 0}
    assert case["syncs_per_step"]["released"]["method"] > 2
    assert 0 < case["engine_share"] < 1
    kept = stored(small)
    assert kept["backbones"]["llama2-7b"]["summary"] == case
    assert len(kept["backbones"]["llama2-7b"]["blocks"]) == 2 * len(NAMES)
    assert set(kept) == {"device", "driver", "versions", "commits", "date", "backbones"}


def test_labels_say_what_was_not_done(unchecked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert training_overhead.main(COMMAND) == 0
    output = capsys.readouterr().out
    for label in ("CPU; random weights; timed, not trained", "2 of 32 layers", "ratios are noise"):
        assert label in output
    assert "8 V100: 1.31" in output
    assert "3 history and 1.5 memory rows per step" in output


class Killed(BaseException):
    """Ends a run as a signal would."""


def test_a_killed_run_goes_on(
    unchecked: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run: list[tuple[str, int]] = []

    def killer(after: int) -> Callable[..., Block]:
        def timed(kind: type[arms.Arm], setup: arms.Setup, repeat: int) -> Block:
            if len(run) == after:
                raise Killed
            run.append((kind.name, repeat))
            return original(kind, setup, repeat)

        return timed

    original, command = blocks.timed, [*COMMAND, "--json", "out.json"]
    monkeypatch.setattr(blocks, "timed", killer(7))
    with pytest.raises(Killed):
        training_overhead.main(command)
    before = stored(unchecked)["backbones"]["llama2-7b"]
    assert [(block["arm"], block["repeat"]) for block in before["blocks"]] == run
    monkeypatch.setattr(blocks, "timed", killer(-1))
    older = stored(unchecked)
    del older["backbones"]["llama2-7b"]["settings"]["graphs"]  # of before there was the option
    Path("out.json").write_text(json.dumps(older))
    assert training_overhead.main(command) == 0
    assert sorted(run) == sorted((name, repeat) for name in NAMES for repeat in range(2))
    after = stored(unchecked)["backbones"]["llama2-7b"]
    assert after["blocks"][:7] == before["blocks"]
    assert after["counts"] == before["counts"]
    first = last_line(capsys)
    monkeypatch.setattr(check, "run", lambda _: pytest.fail("a finished run has nothing to check"))
    assert training_overhead.main(command) == 0
    assert last_line(capsys) == first
    assert training_overhead.main([*command, "--memory-rows", "2"]) == training_overhead.BAD_INPUT
    assert "out.json holds a run with llama2-7b: memory_rows=3, not 2" in capsys.readouterr().err


def test_what_one_backbone_adds_is_not_said_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"graphs": False}
    older = {"settings": {}, "blocks": []}  # of before a backbone had commits of its own
    record = Store(None, CPU).record | {"commits": ["a"], "backbones": {"x": older, "y": older}}
    path = tmp_path / "out.json"
    path.write_text(json.dumps(record))
    monkeypatch.setattr("training.store.environment.commit", lambda: "b")
    store = Store(path, CPU)
    found = {name: store.backbone(name, settings) for name in ("x", "y")}
    store.measuring("x")
    store.save()
    assert (found["x"]["commits"], found["y"]["commits"]) == (["a", "b"], ["a"])
    assert json.loads(path.read_text())["commits"] == ["a", "b"]
    store.forget("x")
    assert json.loads(path.read_text())["commits"] == ["a"]


def test_a_wrong_result_is_not_timed(
    small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def differ(*_: object) -> None:
        raise GateError("AIM as released: 3 of 9 entries differ")

    monkeypatch.setattr(check, "compare", differ)
    monkeypatch.setattr(blocks, "timed", lambda *_: pytest.fail("timed after a failed check"))
    assert training_overhead.main([*COMMAND, "--json", "out.json"]) == 1
    streams = capsys.readouterr()
    assert "error: wrong result, so it was not timed: AIM as released: 3 of 9" in streams.err
    assert not streams.out.splitlines()[-1].startswith("{")
    assert stored(small)["backbones"] == {}


def test_other_batches_are_a_wrong_result(
    unchecked: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Later(arms.Matched):
        def step(self, number: int) -> None:
            super().step(number + 1)

    monkeypatch.setattr(measure, "ARMS", (arms.Arm, Later))
    monkeypatch.setattr(measure, "COUNTED", ())
    assert training_overhead.main(COMMAND) == training_overhead.WRONG_RESULT
    assert "matched: trained on other task rows than plain LoRA" in capsys.readouterr().err


def test_minutes_end_a_run_after_a_whole_repeat(
    unchecked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert training_overhead.main([*COMMAND, "--minutes", "0", "--json", "out.json"]) == 0
    streams = capsys.readouterr()
    assert "stopped before repeat 2" in streams.err
    assert json.loads(streams.out.splitlines()[-1])["cases"][0]["repeats"] == 1
    assert training_overhead.main([*COMMAND, "--json", "out.json"]) == 0
    assert last_line(capsys)["cases"][0]["repeats"] == 2


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--backbone", "bert"], "unknown backbone 'bert'; known are t5-large"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--steps", "6"], "--steps 6: must be a multiple of 4 (twice --s-init)"),
        (["--history-rows", "21"], "--history-rows 21: the memory of 1 past tasks holds 20 rows"),
        (["--layers", "-1"], "--layers -1: must be at least 0"),
        (["--s-init", "64", "--steps", "128"], "--s-init 64: at most 63"),
        (["--json", "no/such/x.json"], "cannot write no/such/x.json"),
        (["--json", "bad.json"], "bad.json is no results file of this bench"),
    ],
)
def test_bad_input_is_one_line(
    arguments: Sequence[str], error: str, capsys: pytest.CaptureFixture[str], small: Path
) -> None:
    (small / "bad.json").write_text("[]")
    assert training_overhead.main(["--device", "cpu", *arguments]) == training_overhead.BAD_INPUT
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.startswith(f"error: {error}")
    assert streams.err.count("\n") == 1
