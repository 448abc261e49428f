"""Saved adapters are scored again; the run stays as it is."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from aimmerge_fast.cl import reevaluate as module
from aimmerge_fast.cl import runner
from aimmerge_fast.cl.reevaluate import Chosen, reevaluate
from tests.cl.tiny import finished_run, make_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory)


@pytest.fixture(scope="module")
def out(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, moved: paths to model and data in it stay."""
    moved = tmp_path_factory.mktemp("moved") / "here"
    shutil.copytree(folder / "out", moved)
    return moved


def files(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and "eval" not in path.relative_to(out).parts
    }


def test_the_scores_of_the_run(out: Path) -> None:
    before = files(out)
    for stage, row in ((1, 0), (None, 1)):
        written = reevaluate(out, Chosen(stage=stage), tasks=["first"])
        assert [entry["arm"] for entry in written] == ["aim-s_init=2", "replay", "seqlora"]
        for entry in written:
            score = entry["tasks"]["first"]
            run = json.loads((out / f"{entry['arm']}-s42" / "arm.json").read_text())
            assert score["score"] == score["run"] == run["scores"][row][0]
            name = ("1-first", "2-second")[row]
            home = out / f"{entry['arm']}-s42/predictions/{name}/first.jsonl"
            assert (out / "eval" / score["predictions"]).read_bytes() == home.read_bytes()
    assert files(out) == before


def test_what_is_written(out: Path) -> None:
    (entry,) = reevaluate(out, Chosen("replay", 42, 2), tasks=["second"], test_items=4)
    path = Path(entry["file"])
    assert path == out / "eval" / "replay-s42-2-second-test-float32-4.json"
    found = json.loads(path.read_text())
    assert (
        found.items()
        >= {
            "arm": "replay",
            "seed": 42,
            "stage": 2,
            "stage_name": "second",
            "split": "test",
            "dtype": "float32",
            "items": 4,
        }.items()
    )
    assert found["tasks"]["second"]["items"] == 4
    assert found["tasks"]["second"]["notes"] == ["4 of 6 test records sampled"]
    (more,) = reevaluate(out, Chosen("replay", 42, 2), tasks=["first"], test_items=4)
    assert set(json.loads(path.read_text())["tasks"]) == {"first", "second"}
    assert more["now"] == ["first"]


def test_dev_records_and_precision(out: Path) -> None:
    (entry,) = reevaluate(out, Chosen("seqlora"), split="dev", dtype="bfloat16")
    assert {task: found["items"] for task, found in entry["tasks"].items()} == {
        "first": 8,
        "second": 8,
    }
    assert entry["dtype"] == "bfloat16"
    assert Path(entry["file"]).name == "seqlora-s42-2-second-dev-bfloat16-all.json"


def test_adapters_of_several_tasks(folder: Path, tmp_path: Path) -> None:
    """IncLoRA keeps one for every task, and all of them act."""
    config = make_config(folder, ["inclora", "mtl"], out=tmp_path / "out")
    runner.run(config)
    for entry in reevaluate(config.out):
        run = json.loads((config.out / f"{entry['arm']}-s42" / "arm.json").read_text())
        scores = [entry["tasks"][task]["score"] for task in ("first", "second")]
        assert scores == run["scores"][-1]
        for task in ("first", "second"):
            home = config.out / f"{entry['arm']}-s42/predictions"
            (ran,) = home.glob(f"{entry['stage']}-*/{task}.jsonl")
            again = config.out / "eval" / entry["tasks"][task]["predictions"]
            assert again.read_bytes() == ran.read_bytes()
    second = config.out / "inclora-s42/adapters/2-second"
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (second / "task2" / name).unlink()  # without its second adapter it is another model
    (second / "task2" / "README.md").unlink(missing_ok=True)
    (entry,) = reevaluate(config.out, Chosen("inclora"))
    texts = [
        (config.out / "inclora-s42/predictions/2-second/first.jsonl").read_text(),
        (config.out / "eval" / entry["tasks"]["first"]["predictions"]).read_text(),
    ]
    assert texts[0] != texts[1]


def test_a_table_is_shown(out: Path) -> None:
    text = io.StringIO()
    reevaluate(out, Chosen("seqlora"), console=Console(file=text, width=120))
    lines = text.getvalue().splitlines()
    assert any(line.split() == ["adapter", "first", "second", "mean"] for line in lines)
    assert any(line.startswith("seqlora, seed 42, after second") for line in lines)


@pytest.mark.parametrize(
    ("chosen", "fields", "message"),
    [
        (Chosen("kif"), {}, r"no arm 'kif'; it has aim-s_init=2, replay, seqlora"),
        (Chosen("replay", 43), {}, r"no seed 43; it has 42"),
        (
            Chosen("replay", stage=3),
            {},
            r"arm 'replay', seed 42 has no adapter of stage 3; it has 1 \(first\), 2 \(second\)",
        ),
        (Chosen(), {"split": "train"}, r"unknown split 'train'; known are test, dev"),
        (Chosen(), {"dtype": "int8"}, r"dtype: .*'float32', 'bfloat16' or 'float16'"),
        (Chosen(), {"tasks": ["third"]}, r"'third' is not known.*in this folder: first, second"),
    ],
)
def test_unknown_things_list_the_known(
    out: Path, chosen: Chosen, fields: dict[str, Any], message: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr(module.models, "load_model", lambda *a, **k: pytest.fail("loaded"))
    with pytest.raises(ValueError, match=message):
        reevaluate(out, chosen, **fields)


def test_a_folder_without_a_run(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no run: there is no run.json"):
        reevaluate(tmp_path)
    shutil.copy(folder / "out/run.json", tmp_path / "run.json")
    with pytest.raises(ValueError, match=r"has saved no adapter yet"):
        reevaluate(tmp_path)
    settings = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**settings, "version": 3}))
    with pytest.raises(ValueError, match=r"holds a run of version 3, not 1"):
        reevaluate(tmp_path)


def test_another_model(folder: Path, out: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(folder / "model", model)
    (model / "more.txt").write_text("x")
    copied = tmp_path / "out"
    shutil.copytree(out, copied)
    settings = json.loads((copied / "run.json").read_text())
    settings["settings"]["model"] = str(model)
    (copied / "run.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"is not the model that the run in .* was made with"):
        reevaluate(copied)
