"""``aimmerge doctor`` says what there is and why, also where the native module is missing."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from aimmerge_fast import doctor, kernels
from aimmerge_fast.cli import app

MISSING = "the compiled module is missing [no such file]"
BUILD = {
    "version": "0.1.0",
    "abi": ".of-another-python.so",
    "native": False,
    "native_reason": "no C++20 compiler works (c++: No such file or directory)",
    "cuda": False,
    "cuda_reason": "this version has no CUDA kernels",
}


def output(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def pure_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine where the build found no compiler."""
    (tmp_path / "_build_info.json").write_text(json.dumps(BUILD))
    monkeypatch.setattr(doctor, "BUILD_INFO", tmp_path / "_build_info.json")

    def available(device: Any = "cpu") -> dict[str, str | None]:
        return {"native": MISSING, "triton": "no GPU", "eager": None}

    monkeypatch.setattr(kernels.registry, "available", available)
    monkeypatch.setattr(kernels, "available", available)


def test_the_report_is_what_the_kernels_say() -> None:
    report = json.loads(output("doctor", "--json"))
    choice = kernels.choose("auto", "cpu")
    cpu = report["backends"]["cpu"]
    assert cpu == {
        "unusable": kernels.available("cpu"),
        "auto": choice.name,
        "why": choice.reason,
    }
    assert report["native"]["loaded"] == (cpu["unusable"]["native"] is None)
    assert report["versions"]["python"].startswith(f"{sys.version_info[0]}.{sys.version_info[1]}")
    assert report["versions"]["torch"]


@pytest.mark.usefixtures("pure_install")
def test_a_pure_install_is_named_with_its_reason() -> None:
    text = output("doctor")
    assert f"native kernels: not built: {BUILD['native_reason']}" in text
    assert f"native module: missing: {MISSING}" in text
    assert f"native: {MISSING}" in text
    assert "eager: works" in text
    assert "auto: eager (" in text
    assert "of another Python (.of-another-python.so" in text


@pytest.mark.usefixtures("pure_install")
def test_a_terminal_shows_the_same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")  # a dumb one is 80 columns wide whatever it is told
    console = Console(file=io.StringIO(), force_terminal=True, width=200)
    doctor.show(doctor.diagnose(), console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]  # it is the StringIO above
    assert MISSING in shown  # brackets are no markup
    assert BUILD["native_reason"] in shown


def test_a_tree_without_a_build_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "BUILD_INFO", tmp_path / "_build_info.json")
    assert "setup.py did not run here" in output("doctor")


def test_help_lists_the_commands() -> None:
    assert "doctor" in output("--help")
