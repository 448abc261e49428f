"""The command line: how settings come together, and one clear line for what is wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aimmerge_fast import cli
from aimmerge_fast.cl.config import build
from aimmerge_fast.cl.methods import METHODS, method_class
from aimmerge_fast.cl.presets import PRESETS, preset_fields
from aimmerge_fast.cl.runner import check_arms
from aimmerge_fast.cli.streams import settings

PATHS = {"data": Path("d"), "model": Path("m"), "out": Path("o")}
COMMANDS = ("run", "plan", "eval", "report", "data", "doctor", "demo", "simulate", "bench")


def fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The one line on stderr of a command that ends with status 2."""
    monkeypatch.setattr(sys, "argv", ["aimmerge", *args])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith("aimmerge: ")
    assert text.count("\n") == 1
    return text


def test_every_command_is_there() -> None:
    shown = CliRunner().invoke(cli.app, ["--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    for name in COMMANDS:
        assert f" {name} " in shown
        done = CliRunner().invoke(cli.app, [name, "--help"])
        assert done.exit_code == 0, name


def test_the_later_setting_wins(tmp_path: Path) -> None:
    """Preset, then file, then flags, then --set."""
    file = tmp_path / "run.yaml"
    file.write_text("preset: table2\nstream: order1\nbatch: 4\nlr: 0.001\nmodel: weights\n")
    flags = {"data": Path("d"), "out": Path("o"), "arms": ["aim"], "seeds": "1,2", "model": None}
    config = settings(file, dict(flags), None, ["lr=0.002", "dtype=bfloat16"])
    assert config.epochs == 10  # preset
    assert config.single is True  # preset
    assert config.batch == 4  # file over preset
    assert config.model == tmp_path / "weights"  # relative to the file
    assert [arm.method for arm in config.arms] == ["aim"]  # flag over preset
    assert config.seeds == (1, 2)
    assert (config.lr, config.dtype) == (0.002, "bfloat16")  # --set over file


def test_a_list_of_tasks_is_a_stream() -> None:
    flags = {**PATHS, "stream": "cb,rte", "arms": ["seqlora"]}
    assert settings(None, dict(flags), None, None).stream == ("cb", "rte")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_runs(name: str) -> None:
    fields = {"stream": "order1", **PATHS, **preset_fields(name)}
    config = build(fields)
    check_arms(config)
    if name == "table2":
        assert config.seeds == (42, 43, 44)
        assert {arm.method for arm in config.arms} >= {"seqlora", "replay", "aim", "mtl"}


@pytest.mark.parametrize("name", ["real_comparison", "real_comparison_gpu", "every_method"])
def test_the_configs_of_bench_are_valid_runs(name: str) -> None:
    file = Path(__file__).parents[1] / "bench" / f"{name}.yaml"
    config = settings(file, dict(PATHS), None, None)
    check_arms(config)
    if name == "every_method":
        assert {arm.method for arm in config.arms} == set(METHODS)
        assert config.steps_for(1000) >= 60


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_named_and_checks_its_settings(name: str) -> None:
    kind = method_class(name)
    assert kind.label
    assert kind.summary
    config = build({"stream": "order1", **PATHS, "arms": [name]})
    check_arms(config)
    wrong = build({"stream": "order1", **PATHS, "arms": [f"{name}:no_such_thing=1"]})
    with pytest.raises(ValueError, match="unknown setting 'no_such_thing'"):
        check_arms(wrong)


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("run", "--stream", "order1"), "data: Field required"),
        (("run", "--preset", "table12"), "the presets are released, table1"),
        (("run", "--set", "lr"), "--set 'lr' must be KEY=VALUE"),
        (("run", "no_such.yaml"), "no_such.yaml"),
        (("report", "nowhere"), "nowhere"),
        (("eval", "nowhere"), "nowhere"),
        (("data", "check", "nowhere"), "nowhere"),
        (("bench", "speed"), "known are merge, training"),
    ],
)
def test_a_bad_input_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: tuple[str, ...],
    text: str,
) -> None:
    assert text in fails(monkeypatch, capsys, *args)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--set", "no_such=1"], "unknown setting 'no_such'; known are alpha, arms"),
        (["--set", "batch=0"], "batch"),
        (["--arm", "aimm"], "unknown method 'aimm'; did you mean 'aim'?"),
        (["--arm", "aim:s_init=0"], "s_init=0 must be an integer"),
        (["--arm", "aim:s_init"], "must be KEY=VALUE"),
        (["--arm", "seqlora+replay"], "the known one is '+memory'"),
        (["--arm", "random:match=kif"], "match='kif' is no arm of this run"),
        (["--arm", "seqlora:match=aim"], "belongs to the controls"),
        (["--stream", "order99"], "order99"),
    ],
)
def test_a_wrong_run_is_refused_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    more: list[str],
    text: str,
) -> None:
    (tmp_path / "d").mkdir()
    flags = ["--stream", "order1", "--data", str(tmp_path / "d"), "--model", str(tmp_path / "m")]
    arms = [] if "--arm" in more else ["--arm", "seqlora"]
    out = str(tmp_path / "o")
    assert text in fails(monkeypatch, capsys, "run", *flags, "--out", out, *arms, *more)
    assert not (tmp_path / "o").exists()


def test_data_list_is_json_for_programs() -> None:
    done = CliRunner().invoke(cli.app, ["data", "list", "--json"])
    streams = {s["name"]: s["tasks"] for s in json.loads(done.output)["streams"]}
    assert streams["order1"] == ["dbpedia", "amazon", "yahoo", "agnews"]
    assert len(streams["order4"]) == len(streams["order6"]) == 15
