"""What a results file says of the tree that was measured."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import environment

ROOT = Path(__file__).parents[1]


def commit_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """``environment.commit()`` of a copy in ``folder``."""
    copy = folder / "environment.py"
    shutil.copy(ROOT / "bench/environment.py", copy)
    monkeypatch.setattr(environment, "__file__", str(copy))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(folder.parent))
    return environment.commit()


def test_outside_git_a_variable_names_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIMMERGE_COMMIT", raising=False)
    assert commit_of(tmp_path, monkeypatch) is None
    monkeypatch.setenv("AIMMERGE_COMMIT", "")
    assert commit_of(tmp_path, monkeypatch) is None
    monkeypatch.setenv("AIMMERGE_COMMIT", "4397194")
    assert commit_of(tmp_path, monkeypatch) == "4397194"


@pytest.mark.skipif(shutil.which("git") is None, reason="git was not found")
def test_git_knows_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIMMERGE_COMMIT", "4397194")
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    for command in (("init", "-q"), (*who, "commit", "-q", "--allow-empty", "-m", "first")):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert commit_of(tmp_path, monkeypatch) == head.stdout.strip()
    subprocess.run(["git", "add", "-A"], cwd=tmp_path, check=True)
    assert environment.commit() == head.stdout.strip() + "-dirty"
