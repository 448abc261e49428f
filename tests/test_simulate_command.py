"""The ``aimmerge simulate`` command: one clear error for every bad input, nothing written."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from aimmerge_fast import cli
from tests.recorded import TRACE, write


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str | Path
) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of ``aimmerge simulate``."""
    monkeypatch.setattr(sys, "argv", ["aimmerge", "simulate", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = write(tmp_path / "t.json", TRACE), tmp_path / "out.json"
    arguments = (path, "--set", "s_init=2", "--set", "f_max=2", "--backend", "eager", "--json", out)
    status, text, _ = run(monkeypatch, capsys, *arguments)
    assert status == 0
    assert text.startswith("open loop")
    [trace] = json.loads(out.read_text())["traces"]
    assert (trace["config"]["s_init"], trace["config"]["f_max"]) == (2, 2)


def changed(**fields: Any) -> str:
    return json.dumps({"traces": [{**TRACE, **fields}]})


def without(field: str) -> str:
    return json.dumps({key: value for key, value in TRACE.items() if key != field})


BAD_FILES = {
    "": "is empty",
    '{"traces": [\n{"id": "a",}]}': "t.json, line 2, column 12: malformed JSON",
    '{"traces": "\xff"': "malformed JSON: 'utf-8' codec can't decode byte 0xff in position 12",
    '{"a": ' + "9" * 5000 + "}": "malformed JSON",
    "[" * 100_000: "malformed JSON",
    '{"traces": []}': "'traces' must be a list of at least one trace",
    '{"traces": [3]}': "trace 1 is no object",
    "[]": "trace 1 is no object",
    without("history_loss"): "trace 'small': field 'history_loss' is missing",
    without("delta_l1"): "trace 'small': field 'delta_l1' is missing",
    without("config"): "trace 'small': field 'config' is missing",
    without("policy"): "trace 'small': field 'policy' is missing",
    changed(config=[]): "trace 'small': 'config' must be a JSON object",
    changed(delta_l1=3.0): "trace 'small': 'delta_l1' must be a JSON array",
    changed(history_loss=[0.1, {}]): "trace 'small': history_loss[1] is {}, not a number",
    changed(history_loss=["0.1"]): "trace 'small': history_loss[0] is '0.1', not a number",
    changed(delta_l1=[-1.0]): "trace 'small': delta_l1[0] is -1.0; it must be 0 or more",
    changed(T=21): "trace 'small': T is 21, but history_loss has 20 values",
    changed(task=-1): "trace 'small': task is -1",
    changed(config={"policy": "released"}): "policy is 'paper' and in its config 'released'",
    changed(config={"s_int": 4}): "trace 'small': unknown config field 's_int'",
    changed(config={"s_init": 4.0}): "trace 'small': s_init=4.0 must be an integer",
    changed(policy="papers"): "trace 'small': policy='papers' is unknown; choose one of paper",
}


@pytest.mark.parametrize("content", BAD_FILES, ids=BAD_FILES.values())
def test_bad_files(
    content: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(content.encode("latin-1"))
    status, out, err = run(monkeypatch, capsys, path, "--json", tmp_path / "out.json")
    assert (status, out) == (2, "")
    assert err.startswith("aimmerge: ")
    assert BAD_FILES[content] in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["no.json"], "cannot read no.json: No such file or directory"),
        (["."], "cannot read .: Is a directory"),
        (["t.json", "--set", "s_init"], "--set s_init: write field=value"),
        (["t.json", "--set", "s_int=4"], "--set s_int=4: unknown field 's_int'; the fields are"),
        (["t.json", "--set", "s_init=4.5"], "--set s_init=4.5: s_init takes an integer"),
        (["t.json", "--set", "alpha_new=x"], "alpha_new takes a number or none"),
        (["t.json", "--set", "probe_dropout=1"], "probe_dropout takes true or false"),
        (["t.json", "--set", "merge_at=1;2"], "merge_at takes integers with commas"),
        (["t.json", "--set", "s_init=0"], "trace 'small': s_init=0 must be an integer in"),
        (["t.json", "--set", "policy=x"], "policy='x' is unknown; choose one of paper, released"),
        (["t.json", "--set", "cold_start=1"], "cold_start=1: policy 'paper' does not read it"),
        (["t.json", "--backend", "tpu"], "unknown backend 'tpu'; choose one of auto, native"),
        (["t.json", "--json", "no/out.json"], "cannot write no/out.json: No such file or dir"),
        (["t.json", "--json", "."], "cannot write .: it exists and is no regular file"),
        (["t.json", "--json", "t.json/out"], "cannot write t.json/out: Not a directory"),
    ],
)
def test_bad_arguments(
    arguments: list[str],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "t.json", TRACE)
    status, out, err = run(monkeypatch, capsys, *arguments)
    assert (status, out) == (2, "")
    assert named in err
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]
