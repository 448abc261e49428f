"""A checkpoint is a PEFT adapter as any other, also where we are not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from tests.integrations.resumable import NOISE, Run, checkpoint, differences, llama

pytestmark = pytest.mark.filterwarnings(NOISE)

PLAIN = """
import sys
sys.modules["aimmerge_fast"] = None  # importing it is an error
import torch, transformers
from peft import PeftModel
base = transformers.LlamaForCausalLM(transformers.AutoConfig.from_pretrained(sys.argv[2]))
base.load_state_dict(torch.load(sys.argv[2] + "/base.pt", weights_only=True))
model = PeftModel.from_pretrained(base, sys.argv[1]).eval()
print(model(torch.arange(6)[None]).logits.double().sum().item().hex())
"""


def test_loaded_by_plain_peft(tmp_path: Path) -> None:
    whole = Run(tmp_path / "run", max_steps=4).train()
    base = llama()
    base.config.save_pretrained(tmp_path)
    torch.save(base.state_dict(), tmp_path / "base.pt")
    place = checkpoint(whole.folder, 4)
    command = [sys.executable, "-I", "-c", PLAIN, str(place), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    model = PeftModel.from_pretrained(llama(), place).eval()
    logits = model(torch.arange(6)[None]).logits.double().sum().item()
    assert float.fromhex(done.stdout.split()[-1]) == pytest.approx(logits, rel=1e-6)
    trained = {n: p for n, p in whole.trainer.model.named_parameters() if "lora_" in n}  # type: ignore[union-attr]
    saved = {
        n.replace(".weight", ".default.weight"): p
        for n, p in load_file(place / "adapter_model.safetensors").items()
    }
    assert differences(saved, {n: p.data for n, p in trained.items()}) == []
