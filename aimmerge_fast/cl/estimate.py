"""Memory that training a model will take, from its config alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from aimmerge_fast.cl import model_files

GIB = 1 << 30
ANSWER_TOKENS = 8  # of a row, whose logits a causal model keeps
#: fp32 copies of an adapter: weight, gradient, two moments of AdamW, and the merger's anchor,
#: snapshot and room for one more
ADAPTER_COPIES = 7


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes while training; ``activations`` is rough (within about a factor of two).

    Attributes:
        weights: of the frozen model. adapters: LoRA in float32 with gradients, moments and the
            merger's copies. activations: what one pass keeps for its backward.
        adapter_entries: trainable numbers.
    """

    weights: int
    adapters: int
    activations: int
    adapter_entries: int

    @property
    def total(self) -> int:
        return self.weights + self.adapters + self.activations

    def __str__(self) -> str:
        parts = ("weights", "adapters", "activations", "total")
        return ", ".join(f"{name} {getattr(self, name) / GIB:.2f} GiB" for name in parts)

    def require_fit(self, device: torch.device | str, free: int | None = None) -> None:
        """``ValueError`` with the figures if the total exceeds what the device has free."""
        free = available(device) if free is None else free
        if self.total > free:
            raise ValueError(
                f"the model does not fit on {device}, where {free / GIB:.2f} GiB are free: {self}; "
                "take a smaller batch, max_tokens or model, or dtype=bfloat16"
            )


def estimate(
    path: str | Path,
    *,
    dtype: str = "float32",
    batch: int = 8,
    tokens: int = 512,
    rank: int = 8,
    targets: Sequence[str] | None = None,
    attention: str | None = None,
) -> Estimate:
    """What training with LoRA takes, at ``batch`` rows of ``tokens`` tokens a pass.

    ``attention`` is as of ``load_model``. The model is built without storage: no weight is read.
    Errors as of ``load_model`` and ``add_lora``.
    """
    model_files.check_dtype(dtype)
    with model_files.unpacked(path) as (folder, gguf):
        config = model_files.read_config(folder, gguf)
    options = {} if attention is None else {"attn_implementation": attention}
    with torch.device("meta"):
        model = model_files.model_factory(config).from_config(config, **options)
    size = model_files.DTYPES[dtype].itemsize
    chosen = set(model_files.lora_targets(model, targets))
    entries = sum(
        rank * sum(module.weight.shape)
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in chosen
    )
    weights = sum(parameter.numel() for parameter in model.parameters())  # tied ones counted once
    return Estimate(
        weights=size * weights,
        adapters=4 * ADAPTER_COPIES * entries,
        activations=_activations(model.config, size, batch, tokens),
        adapter_entries=entries,
    )


def _activations(config: Any, size: int, batch: int, tokens: int) -> int:
    """Counted on small Llama and T5 models with LoRA on q and v, and rounded.

    A token keeps about 10 hidden + 3 feed-forward values a layer, 25 hidden with T5's dropouts;
    16-bit models 3 hidden values more, in float32, for LoRA. Attention keeps some bytes a head and
    pair of tokens, unless it is computed in one piece (T5's is not).
    """
    first = getattr(config, "get_text_config", lambda: config)()
    hidden, heads = _field(first, "hidden_size"), _field(first, "num_attention_heads")
    inner = _field(first, "intermediate_size", "d_ff", "ffn_dim", "encoder_ffn_dim", "n_inner")
    layers = _field(first, "num_hidden_layers")
    wide = (25 if config.is_encoder_decoder else 10) * hidden + 3 * (inner or 4 * hidden)
    apart = bool(config.is_encoder_decoder) or config._attn_implementation == "eager"
    token = size * wide + (12 * hidden if size < 4 else 0)
    pair = 10 if size < 4 else 8 if config.is_encoder_decoder else 4  # bytes
    token += heads * tokens * pair * apart
    logits = 12 * batch * ANSWER_TOKENS * _field(first, "vocab_size")  # with softmax and gradient
    return layers * batch * tokens * token + logits


def _field(config: Any, *names: str) -> int:
    found = (getattr(config, name, None) for name in names)
    return int(next((value for value in found if value is not None), 0))


def available(device: torch.device | str) -> int:
    """Bytes free on a device now; on the CPU within the limits of the process's control group."""
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = _meminfo() or 1 << 62
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        root = Path("/sys/fs/cgroup")
        try:
            free = min(free, int((root / limit).read_text()) - int((root / used).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return max(0, free)


def _meminfo() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return None
