"""The demo's model, made on the spot: a LLaMA of 0.1 M parameters, a tokenizer of whole words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aimmerge_fast.cl.demo.reviews import WORDS, vocabulary

PAD, END, UNKNOWN = "<pad>", "<end>", "<unk>"
_WIDTH, _LAYERS, _HEADS = 64, 2, 4
#: Of all weights: with the usual 0.02 the frozen layers of an untrained model pass on too little
#: for LoRA on queries and values to build on.
_STD = 0.1
#: Share of a word vector's variance that the words of its class have in common.
_SHARED = 0.9
_SEED = 0


def write_model(folder: Path) -> None:
    """Write the model and its tokenizer as an HF folder; always the same weights.

    The weights are random, except that words of one class (praise, foul weather, food ...) have
    vectors near each other: what pre-training would have taught, and no more. No task is known.
    Torch's own generator is left as it was.
    """
    import torch

    from aimmerge_fast.cl.models import quiet

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(_SEED)
    try:
        model = _model(tokenizer)
        _gather_words(model, tokenizer)
    finally:
        torch.default_generator.set_state(state)
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [PAD, END, UNKNOWN, *vocabulary()]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    make: Any = PreTrainedTokenizerFast
    return make(tokenizer_object=inner, pad_token=PAD, eos_token=END, unk_token=UNKNOWN)


def _model(tokenizer: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=_WIDTH,
        intermediate_size=2 * _WIDTH,
        num_hidden_layers=_LAYERS,
        num_attention_heads=_HEADS,
        num_key_value_heads=_HEADS,
        max_position_embeddings=256,
        initializer_range=_STD,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config)


def _gather_words(model: Any, tokenizer: Any) -> None:
    """Draw the vectors of each class towards one direction, keeping their variance."""
    import torch

    vectors = model.get_input_embeddings().weight
    with torch.no_grad():
        for words in WORDS.values():
            ids = tokenizer.convert_tokens_to_ids(list(words))
            common = _STD * torch.randn(_WIDTH)
            vectors[ids] = _SHARED**0.5 * common + (1 - _SHARED) ** 0.5 * vectors[ids]
