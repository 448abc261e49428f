"""``aimmerge simulate``: a trace file in, a table and a trace file out."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from aimmerge_fast.simulate.output import show, simulate_file, write_json
from tests.recorded import TRACE, agree, write
from tests.traces import FILES, load_traces

VECTORS = Path(__file__).parent / "vectors"


def shown(results: Any) -> str:
    """The plain form, as a pipe gets it."""
    stream, stdout = io.StringIO(), sys.stdout
    try:
        sys.stdout = stream
        show(results, Console(file=stream))
    finally:
        sys.stdout = stdout
    return stream.getvalue()


@pytest.mark.parametrize("name", FILES)
def test_what_is_written_is_the_trace_file(name: str, tmp_path: Path) -> None:
    path = VECTORS / f"{name}.json"
    write_json(tmp_path / "out.json", simulate_file(path))
    text = (tmp_path / "out.json").read_text(encoding="utf-8")
    written = json.loads(text, parse_constant=pytest.fail)
    expected = {trace["id"]: trace for trace in load_traces()}
    assert [t["id"] for t in written["traces"]] == [
        t["id"] for t in json.loads(path.read_text(encoding="utf-8"))["traces"]
    ]
    for trace in written["traces"]:
        known = expected[trace["id"]]
        for field in ("policy", "T", "history_loss", "delta_l1", "steps", "merges"):
            assert agree(trace[field], known[field]), f"{trace['id']}: {field}"
        assert known["config"].items() <= trace["config"].items()
    # reading our own output gives it again
    write_json(tmp_path / "again.json", simulate_file(tmp_path / "out.json"))
    assert (tmp_path / "again.json").read_text(encoding="utf-8") == text


def test_one_trace_object_without_a_name(tmp_path: Path) -> None:
    trace = {key: value for key, value in TRACE.items() if key != "id"}
    trace["config"] = {"policy": "paper", "s_init": 4}
    del trace["policy"]
    [result] = simulate_file(write(tmp_path / "t.json", trace)).traces
    assert result.trace.id == "trace 1"
    assert [merge["step"] for merge in result.simulation.merges] == [8, 16]


def test_what_came_after_the_changes_ran_out_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "t.json", {**TRACE, "delta_l1": [8.0]})
    results = simulate_file(path)
    write_json(tmp_path / "out.json", results)
    [trace] = json.loads((tmp_path / "out.json").read_text())["traces"]
    assert trace["T"] == len(trace["history_loss"]) == len(trace["steps"]["code"]) == 16
    assert trace["ran_out"] is True
    assert len(trace["merges"]) == 1
    assert "stopped at step 16 of 20: the 1 recorded change ran out" in shown(results)


def test_values_that_are_not_finite_survive_as_strict_json(tmp_path: Path) -> None:
    losses = [0.1, None, "nan", "inf", "-inf", *[0.1] * 15]
    path = write(tmp_path / "t.json", {**TRACE, "history_loss": losses, "delta_l1": ["nan", 6.0]})
    results = simulate_file(path)
    write_json(tmp_path / "out.json", results)
    text = (tmp_path / "out.json").read_text()
    [trace] = json.loads(text, parse_constant=pytest.fail)["traces"]
    assert trace["history_loss"][1:5] == ["nan", "nan", "inf", "-inf"]
    assert trace["rejected"] == [8]
    assert "rejected, since the recorded change is not finite: at step 8" in shown(results)


def test_the_table(tmp_path: Path) -> None:
    results = simulate_file(write(tmp_path / "t.json", TRACE), backend="eager")
    lines = shown(results).splitlines()
    assert lines[0].startswith("open loop: the i-th recorded change is used for the i-th merge")
    assert lines[1:4] == [
        "backend eager",
        "",
        "small: policy paper, schedule adaptive, 20 steps, 2 merges",
    ]
    assert [line.split() for line in lines[4:]] == [
        ["step", "kind", "S", "S'", "F", "Lambda", "alpha_new", "alpha_past", "M", "next", "S"],
        ["8", "forced", "4", "8", "0", "1", "1", "0", "4", "4"],
        ["16", "forced", "4", "8", "0", "0.75", "1", "0", "4", "4"],
    ]
    stream = io.StringIO()
    show(results, Console(file=stream, force_terminal=True, width=100))
    assert "alpha_new" in stream.getvalue()
    assert "┃" in stream.getvalue()


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.json"
    out.write_text("old")
    results = simulate_file(write(tmp_path / "t.json", TRACE))

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match=r"cannot write .*out.json: No space left on device"):
        write_json(out, results)
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "t.json"]
