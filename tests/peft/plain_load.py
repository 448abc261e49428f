"""Runs in a process without aimmerge_fast: loads what was saved, saves what it says to inputs."""

from __future__ import annotations

import json
import sys
import traceback
import warnings
from pathlib import Path

import peft
import torch
from safetensors.torch import load_file, save_file

from tests.peft.kinds import KINDS, outputs


def load(folder: Path) -> None:
    """The adapter onto a base built anew."""
    kind = KINDS[folder.name]
    base = kind.base()
    for name, tensor in load_file(folder / "base.safetensors").items():
        assert torch.equal(base.state_dict()[name], tensor), name
    model = peft.PeftModel.from_pretrained(
        base, folder / "adapter", config=kind.config(), autocast_adapter_dtype=kind.autocast
    )
    save_file({"logits": outputs(model)}, folder / "loaded.safetensors")


def main(root: Path) -> None:
    """Prints {kind: error} of those that could not be loaded; one sub-folder for each kind."""
    assert sys.modules["aimmerge_fast"] is None  # an import of it fails
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
    torch.set_num_threads(1)
    errors = {}
    for folder in sorted(root.iterdir()):
        try:
            load(folder)
        except Exception:
            errors[folder.name] = traceback.format_exc()
    assert not [name for name in sys.modules if name.startswith("aimmerge_fast.")]
    print(json.dumps(errors))
