"""Greedy generation in batches, with the same texts as one record at a time."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import torch

from aimmerge_fast.cl.encode import Encoder
from aimmerge_fast.cl.models import core_of


def generate(
    model: Any,
    encoder: Encoder,
    records: Sequence[Mapping[str, Any]],
    *,
    batch: int = 25,
    max_new_tokens: int = 128,
) -> list[str]:
    """The model's greedy answers, stripped, in the order of ``records``.

    Records of similar length share a batch, the longest first (what does not fit fails at once).
    A batch ends when all its rows have. The model's own generation settings (sampling, beams,
    penalties) do not apply, only its end and start tokens. Draws no random numbers; every module is
    left in the mode, train or eval, that it had. In float32 a batch gives the texts that its
    records give alone; in 16 bits near-ties between two tokens may fall differently.
    """
    if batch < 1 or max_new_tokens < 1:
        raise ValueError(f"batch={batch} and max_new_tokens={max_new_tokens} must be at least 1")
    lengths = [len(encoder.prompt(record)) for record in records]
    order = sorted(range(len(records)), key=lambda place: -lengths[place])
    texts = [""] * len(records)
    with evaluating(model), _greedy(model, encoder, max_new_tokens) as core:
        for start in range(0, len(order), batch):
            places = order[start : start + batch]
            inputs = encoder.prompts([records[place] for place in places])
            # an encoder-decoder's output begins with its start token, another one with the prompt
            width = 1 if encoder.seq2seq else inputs["input_ids"].shape[1]
            output = core.generate(**{k: v.to(core.device) for k, v in inputs.items()})
            ends = core.generation_config.eos_token_id
            for place, row in zip(places, output[:, width:].tolist(), strict=True):
                texts[place] = encoder.text(_until(row, ends))
    return texts


def _until(row: Sequence[int], ends: Container[int]) -> list[int]:
    return list(itertools.takewhile(lambda token: token not in ends, row))


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Eval mode and no gradients; afterwards every module's own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def _greedy(model: Any, encoder: Encoder, max_new_tokens: int) -> Iterator[Any]:
    """The transformers model, its generation settings replaced for the time being."""
    from transformers import GenerationConfig

    core = core_of(model)
    own = core.generation_config
    ends = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
    settings: Any = GenerationConfig
    core.generation_config = settings(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        use_cache=True,
        bos_token_id=own.bos_token_id,
        eos_token_id=sorted({encoder.end, *(end for end in ends if end is not None)}),
        pad_token_id=encoder.pad,
        decoder_start_token_id=own.decoder_start_token_id,
        forced_bos_token_id=own.forced_bos_token_id,
    )
    try:
        yield core
    finally:
        core.generation_config = own
