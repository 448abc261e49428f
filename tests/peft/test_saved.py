"""What was merged is saved by PEFT and loaded by PEFT, where aimmerge_fast cannot be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.peft.kinds import KINDS, outputs
from tests.peft.training import trained

# peft reads a property that transformers has deprecated
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    # peft takes every one-dimensional lora_B for the shard of a matrix, the biases too
    pytest.mark.filterwarnings("ignore:Adapter 'default'.*lora_B.bias"),
    # it says that it saves the embeddings that were given adapters, which is as it should be
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
]
ROOT = Path(__file__).parents[2]
WITHOUT_US = """
import sys
from pathlib import Path
sys.modules["aimmerge_fast"] = None
from tests.peft.plain_load import main
main(Path(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Every kind trained and saved; one process loads all of them. Errors by kind."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the other process
    root = tmp_path_factory.mktemp("saved")
    for name, kind in KINDS.items():
        folder = root / name
        folder.mkdir()
        base = {key: value.clone() for key, value in kind.base().state_dict().items()}
        save_file(base, folder / "base.safetensors")
        model = trained(name)[1].model
        model.save_pretrained(folder / "adapter")
        save_file({"logits": outputs(model)}, folder / "trained.safetensors")
    torch.set_num_threads(threads)
    command = [sys.executable, "-c", WITHOUT_US, str(root)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return root, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_plain_peft_says_the_same(kind: str, saved: tuple[Path, dict[str, str]]) -> None:
    root, errors = saved
    assert kind not in errors, errors[kind]
    trained = load_file(root / kind / "trained.safetensors")["logits"]
    loaded = load_file(root / kind / "loaded.safetensors")["logits"]
    assert torch.equal(loaded, trained)
    untrained = outputs(KINDS[kind].model())
    assert not torch.equal(loaded, untrained)  # the adapter was loaded, and it says something
