"""``Checkpoints``: what stays, what goes, who may write, what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from aimmerge_fast.durable import Broken, Checkpoints, read_part, seal, verify, write_part
from tests.durable.disk import warnings_of_the_room


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def damage(folder: Path) -> Path:
    path = folder / "aimmerge" / "rank0.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return path


def test_the_newest_are_kept_in_the_order_of_steps(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "deep" / "out", keep=3)
    assert checkpoints.load() is None
    assert not (tmp_path / "deep").exists()  # looking makes nothing
    for step in (0, 2, 9, 10, 11):  # by number, not by letter
        assert checkpoints.save(step, {"x": torch.ones(2) * step}).name == f"step-{step}"
        assert checkpoints.load()[1]["x"].tolist() == [step, step]  # type: ignore[index]
    assert names(checkpoints.folder) == ["lock", "step-10", "step-11", "step-9"]


def test_a_step_saved_again_is_newer(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    paths = [checkpoints.save(5, {"turn": turn}) for turn in range(1, 12)]
    assert [path.name for path in paths[:3]] == ["step-5", "step-5-2", "step-5-3"]
    assert names(tmp_path) == ["lock", "step-5-10", "step-5-11"]
    assert checkpoints.load() == (5, {"turn": 11})
    checkpoints.save(6, {})
    assert names(tmp_path) == ["lock", "step-5-11", "step-6"]


def test_other_files_in_the_folder_stay(tmp_path: Path) -> None:
    (tmp_path / "step-1b").mkdir()
    (tmp_path / "step-007").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    checkpoints = Checkpoints(tmp_path, keep=1)
    assert checkpoints.load() is None
    checkpoints.save(1, {})
    checkpoints.save(2, {})
    assert names(tmp_path) == ["lock", "notes.txt", "step-007", "step-1b", "step-2"]


def test_what_a_dead_process_left_goes_at_the_next_save(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {})
    write_part(tmp_path / ".step-2.part", "rank0", {"step": 2, "tree": {}})
    assert checkpoints.load() == (1, {})
    checkpoints.save(3, {})
    assert names(tmp_path) == ["lock", "step-1", "step-3"]


def test_a_broken_one_counts_for_nothing_and_goes_when_it_is_old(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        Checkpoints(tmp_path, keep=3).save(step, {"n": step})
    path = damage(tmp_path / "step-3")
    checkpoints = Checkpoints(tmp_path, keep=2)
    with warnings_of_the_room() as said:
        assert checkpoints.load() == (2, {"n": 2})
    assert said == [
        f"checkpoint passed over, going on from step-2: {path} is damaged: its sha256 is not the "
        "sealed one"
    ]
    checkpoints.save(3, {"n": 4})  # the run comes to the same step once more
    assert names(tmp_path) == ["lock", "step-2", "step-3", "step-3-2"]
    with warnings_of_the_room() as said:
        assert checkpoints.load() == (3, {"n": 4})
    assert said == []
    checkpoints.save(4, {"n": 5})
    assert names(tmp_path) == ["lock", "step-3-2", "step-4"]


def test_it_does_not_start_anew_when_all_are_broken(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, {})
        damage(tmp_path / f"step-{step}")
    with pytest.raises(Broken, match=r"no checkpoint in .* is complete; remove .*step-2/.*step-1/"):
        checkpoints.load()


def test_a_step_that_is_behind_is_refused(tmp_path: Path) -> None:
    Checkpoints(tmp_path).save(9, {})
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(ValueError, match=r"has step-9, which is newer than step 3: load\(\) it"):
        checkpoints.save(3, {})
    damage(tmp_path / "step-9")
    with pytest.raises(ValueError, match="newer than step 3"):
        checkpoints.save(3, {})  # it was complete when this object looked
    checkpoints.save(10, {})
    with pytest.raises(ValueError, match="has step-10, which is newer than step 9"):
        checkpoints.save(9, {})
    damage(tmp_path / "step-10")
    checkpoints.close()
    Checkpoints(tmp_path).save(3, {})
    assert names(tmp_path) == ["lock", "step-10", "step-3", "step-9"]


@pytest.mark.parametrize("keep", [0, -1, 1.5, True, None])
def test_keep_is_checked(tmp_path: Path, keep: Any) -> None:
    with pytest.raises(ValueError, match="how many checkpoints to keep"):
        Checkpoints(tmp_path, keep=keep)


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (ValueError, "step must be an integer", {"step": -1}),
        (ValueError, "step must be an integer", {"step": 1.0}),
        (ValueError, "step must be an integer", {"step": True}),
        (ValueError, "part 'rank1' needs barrier=", {"part": "rank1"}),
        (ValueError, "a part's name is", {"part": "../x", "barrier": lambda: None}),
        (TypeError, "keys are strings", {"tree": {1: 2}}),
        (TypeError, "holds dicts, lists, JSON scalars and tensors", {"tree": {"a": object()}}),
    ],
)
def test_what_cannot_be_saved(
    tmp_path: Path, error: type[Exception], match: str, arguments: dict[str, Any]
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"n": 1})
    with pytest.raises(error, match=match):
        checkpoints.save(**{"step": 2, "tree": {}} | arguments)
    assert checkpoints.load() == (1, {"n": 1})
    checkpoints.save(2, {"n": 2})
    assert checkpoints.load() == (2, {"n": 2})


# ---- several processes -----------------------------------------------------------------------


def test_each_rank_has_a_part(tmp_path: Path) -> None:
    barrier, paths = threading.Barrier(3, timeout=20), []

    def wait() -> None:
        barrier.wait()

    def rank(number: int) -> None:
        checkpoints = Checkpoints(tmp_path, keep=1)
        for step in (1, 2, 2):
            tree = {"rank": number, "step": step}
            part = f"rank{number}"
            paths.append(checkpoints.save(step, tree, part=part, barrier=wait))

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted({path.name for path in paths}) == ["step-1", "step-2", "step-2-2"]
    assert names(tmp_path) == ["lock", "step-2-2"]
    for number in range(3):
        found = Checkpoints(tmp_path).load(part=f"rank{number}")
        assert found == (2, {"rank": number, "step": 2})
    with pytest.raises(ValueError, match=r"has no part 'rank3', it has rank0, rank1, rank2; go on"):
        Checkpoints(tmp_path).load(part="rank3")


def test_one_process_at_a_time_saves(tmp_path: Path) -> None:
    first, second = Checkpoints(tmp_path), Checkpoints(tmp_path)
    first.save(1, {"n": 1})
    for _ in range(3):
        with pytest.raises(ValueError, match=r"another process saves in .*; wait for it, or give"):
            second.save(2, {"n": 2})
    assert second.load() == (1, {"n": 1})  # looking is free
    first.save(2, {"n": 1})
    first.close()
    second.save(3, {"n": 3})
    with pytest.raises(ValueError, match="another process"):
        first.save(4, {})
    del second
    first.save(4, {})
    assert names(tmp_path) == ["lock", "step-3", "step-4"]


def test_the_lock_ends_with_the_process_though_a_child_of_it_lives_on(tmp_path: Path) -> None:
    code = (
        "import os, sys, time\n"
        "from aimmerge_fast.durable import Checkpoints\n"
        "checkpoints = Checkpoints(sys.argv[1])\n"
        "checkpoints.save(1, {})\n"
        "if os.fork() == 0:\n"
        "    print('child', flush=True)\n"
        "    sys.stdin.read()\n"  # a worker that outlives it
        "    os._exit(0)\n"
        "sys.stdout.flush()\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"child\n"
        checkpoints = Checkpoints(tmp_path)
        with pytest.raises(ValueError, match="another process saves in"):
            checkpoints.save(2, {})
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        checkpoints.save(2, {})
        assert names(tmp_path) == ["lock", "step-1", "step-2"]


# ---- sealed folders --------------------------------------------------------------------------


def test_a_folder_that_is_filled_anew_is_sealed_anew(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-30"
    unsealed = [r"manifest.json is missing", r"rank0.safetensors was not there when"]
    for text, reason in zip(("one", "two"), unsealed, strict=True):
        folder.mkdir(exist_ok=True)
        (folder / "state.json").write_text(text)
        write_part(folder, "rank0", {"text": text})
        with pytest.raises(Broken, match=reason):
            verify(folder)
        (folder / "aimmerge.part" / ".rank0.safetensors.17.part").write_text("half")
        seal(folder, {"text": text})
        assert verify(folder) == {"text": text}
        assert read_part(folder, "rank0") == {"text": text}
        assert names(folder / "aimmerge") == ["manifest.json", "rank0.safetensors"]


def test_what_cannot_be_sealed_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(TypeError, match="not JSON serializable"):
        seal(tmp_path, {"a": object()})
    with pytest.raises(ValueError, match="not JSON compliant"):
        seal(tmp_path, {"a": float("nan")})
    assert names(tmp_path) == ["file"]
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(ValueError, match=r"/link is a link; a sealed folder holds plain files"):
        seal(tmp_path, {})
    assert names(tmp_path) == ["file", "link"]


def test_a_folder_that_is_not_there_is_broken(tmp_path: Path) -> None:
    with pytest.raises(Broken, match=r"/nothing cannot be read: No such file or directory"):
        verify(tmp_path / "nothing")
    with pytest.raises(Broken, match=r"/aimmerge/manifest.json is missing: the checkpoint was not"):
        verify(tmp_path)


def test_a_manifest_without_end_is_not_read(tmp_path: Path) -> None:
    seal(tmp_path, {})
    os.truncate(tmp_path / "aimmerge" / "manifest.json", 65 << 20)
    with pytest.raises(Broken, match=r"/manifest.json is damaged: it is too long"):
        verify(tmp_path)
