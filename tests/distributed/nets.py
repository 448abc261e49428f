"""Small models and their data for the process tests: the same for every rank and world."""

from __future__ import annotations

from typing import Any

import peft
import torch
import torch.distributed as dist
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from aimmerge_fast import RehearsalMemory

Record = dict[str, Any]
WORDS, LENGTH = 17, 6


class Branches(nn.Module):
    """Layers of 10, 3 and 4 rows, and one that only even inputs reach."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 10), nn.Linear(10, 3), nn.Linear(3, 4)
        self.spare = nn.Linear(3, 4)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, spare: bool = False) -> Tensor:
        hidden = torch.tanh(self.middle(self.drop(torch.tanh(self.first(x)))))
        out: Tensor = self.last(hidden)
        return out + self.spare(hidden) if spare else out


def plain(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    model = Branches(dropout)
    model.spare.requires_grad_(False)
    model.middle.is_block = True
    return model


def branches() -> nn.Module:
    """Also ``spare`` trains, but no forward reaches it."""
    torch.manual_seed(0)
    return Branches(0.0)


def lora() -> nn.Module:
    """Rank 1: of the A matrices all ranks but one hold nothing."""
    torch.manual_seed(0)
    config = peft.LoraConfig(r=1, lora_alpha=4, target_modules=["first", "middle", "last"])
    return peft.get_peft_model(Branches(0.0), config)


def causal() -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        attn_implementation="eager",
    )
    targets = ["q_proj", "v_proj", "lm_head"]
    made = peft.LoraConfig(r=1, lora_alpha=8, target_modules=targets)
    return peft.get_peft_model(LlamaForCausalLM(config), made)


MAKERS = {"plain": plain, "branches": branches, "lora": lora, "causal": causal}


def wrap(model: nn.Module, kind: str | None, **options: Any) -> nn.Module:
    """As a user wraps it; None: as it is.

    kind: "ddp"; "fsdp" shards a layer of its own and the rest; "blocks" shards some layers and
    leaves the rest, which is frozen, whole; "hsdp" shards over half of the ranks, twice.
    """
    if kind is None:
        return model
    if kind == "ddp":
        return DistributedDataParallel(model, **options)
    world = dist.get_world_size()
    mesh = dist.init_device_mesh("cpu", (world,))
    if kind == "hsdp":
        names = ("replicate", "shard")
        mesh = dist.init_device_mesh("cpu", (2, world // 2), mesh_dim_names=names)
    layers = [module for module in model.modules() if _is_block(module)]
    for layer in layers if kind == "blocks" else layers[:1]:
        fully_shard(layer, mesh=mesh)
    if kind != "blocks":
        fully_shard(model, mesh=mesh)
    return model


def _is_block(module: nn.Module) -> bool:
    """A layer of ``Branches``, with its adapter where it has one, or of a Llama."""
    return isinstance(module, (LoraLayer, LlamaDecoderLayer)) or getattr(module, "is_block", False)


# ---- records and batches -----------------------------------------------------------------------


def records(count: int, seed: int, shift: int = 0) -> list[Record]:
    """Points whose class is that of their largest coordinate, moved on by ``shift``."""
    draw = torch.Generator().manual_seed(seed)
    points = torch.randn(count, 6, generator=draw)
    labels = (points[:, :4].argmax(1) + shift) % 4
    return [
        {"id": i, "x": x, "label": int(label)}
        for i, (x, label) in enumerate(zip(points.tolist(), labels.tolist(), strict=True))
    ]


def sentences(count: int, seed: int, shift: int = 0) -> list[Record]:
    """Words of which each follows from the one before; 1 to 5 of a sentence's labels count."""
    draw = torch.Generator().manual_seed(seed)
    made = []
    for i in range(count):
        words = [int(torch.randint(WORDS, (), generator=draw))]
        while len(words) < LENGTH:
            words.append((3 * words[-1] + 1 + shift) % WORDS)
        ignored = 1 + int(torch.randint(LENGTH - 1, (), generator=draw))
        made.append({"id": i, "x": words, "label": [-100] * ignored + words[ignored:]})
    return made


def collate(chosen: list[Record]) -> Any:
    labels = torch.tensor([r["label"] for r in chosen])
    inputs = torch.tensor([r["x"] for r in chosen])
    return {"input_ids": inputs, "labels": labels} if labels.dim() == 2 else (inputs, labels)


def loss_fn(model: Any, batch: Any) -> Tensor:
    if isinstance(batch, dict):
        loss: Tensor = model(**batch).loss
        return loss
    x, labels = batch
    dtype = next(p.dtype for p in model.parameters())
    return nn.functional.cross_entropy(model(x.to(dtype)).float(), labels)


def items(batch: Any) -> int:
    """What the mean loss of ``batch`` is over."""
    if isinstance(batch, dict):
        return int((batch["labels"][:, 1:] != -100).sum())
    return len(batch[1])


def data_of(net: str, count: int, seed: int, shift: int = 0) -> list[Record]:
    return (sentences if net == "causal" else records)(count, seed, shift)


def memory_of(net: str, count: int = 20) -> RehearsalMemory:
    memory = RehearsalMemory(ratio=1.0, rule="uniform")
    memory.add("earlier", data_of(net, count, 1))
    return memory
