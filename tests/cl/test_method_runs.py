"""Methods that add adapters, stages or state of their own, in whole runs that are killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from aimmerge_fast.cl import arm, runner
from tests.cl.tiny import make_config, make_data, make_model

ARMS = ["kif:s_init=2", "tasl", "inclora+memory", "mtl"]
FILES = {"mtl": "1-all"}


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("runs")
    make_model(home / "model")
    make_data(home / "data", n=20)
    runner.run(config_of(home, "whole"))
    return home


def config_of(folder: Path, out: str) -> Any:
    return make_config(folder, ARMS, out=folder / out, monitor=True, log_every=6, test_items=2)


def entries(config: Any) -> dict[str, dict[str, Any]]:
    results = json.loads((config.out / "results.json").read_text())
    return {entry["method"]: entry for entry in results["arms"]}


def test_killed_after_every_fifth_save(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, saves, kills = config_of(folder, "killed"), [0], 0
    save = arm.Arm._save

    def counted(self: Any) -> None:
        save(self)
        saves[0] += 1
        if saves[0] % 5 == 0:
            raise Killed

    monkeypatch.setattr(arm.Arm, "_save", counted)
    while True:
        try:
            runner.run(config)
        except Killed:
            kills += 1
        else:
            break
    assert kills >= 4
    whole, found = entries(config_of(folder, "whole")), entries(config)
    for name, entry in whole.items():
        for field in ("scores", "metrics", "losses", "rows", "stages", "merges"):
            assert found[name][field] == entry[field], (name, field)
        for kind in ("whole", "killed"):
            assert (folder / kind / entry["folder"] / "adapters").is_dir()
        last = Path(entry["folder"], "adapters", FILES.get(name, "2-second"))
        tensors = {
            kind: {
                str(path.relative_to(folder / kind)): {
                    key: tensor.tolist() for key, tensor in load_file(path).items()
                }
                for path in (folder / kind / last).rglob("*.safetensors")
            }
            for kind in ("whole", "killed")
        }
        assert tensors["whole"]
        assert tensors["whole"] == tensors["killed"]


def test_what_the_results_say(folder: Path) -> None:
    found = entries(config_of(folder, "whole"))
    mtl = found["mtl"]
    assert (mtl["stages"], len(mtl["losses"]["all"])) == (["all"], 12)  # of both tasks
    ((first, second),) = mtl["scores"]
    assert mtl["metrics"]["OP"] == pytest.approx((first + second) / 2)
    assert mtl["metrics"]["BWT"] is mtl["metrics"]["FWT"] is None
    kif = found["kif"]
    assert kif["merges"]["total"]["merges"]["due"] == 3
    assert kif["merges"]["total"]["no_op"] == 0
    inclora = found["inclora"]
    assert inclora["memory_epochs"] == 2
    assert inclora["rows"]["memory"] == 2 * 4  # two passes over 20 % of 20
    saved = folder / "whole" / inclora["folder"] / "adapters" / "2-second"
    assert {path.parent.name for path in saved.rglob("*.safetensors")} == {"2-second", "task2"}
