"""Tiny models and tokenizers with random weights, made without any download."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

WORDS = ("red", "green", "blue", "small", "large", "old", "new", "it", "is", "seen", "what", "the")
FRAME = ("Answer", ":", "?", "Option", "###")


def word_tokenizer(**settings: Any) -> Any:
    """One token a word; ``<pad>`` 0, ``</s>`` 1, ``<s>`` 2, ``<unk>`` 3; spaces are dropped."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    words = ("<pad>", "</s>", "<s>", "<unk>", "\n", *FRAME, *WORDS)
    vocabulary = {word: place for place, word in enumerate(words)}
    whole = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    split: Any = pre_tokenizers.Split(Regex(" "), "removed")
    lines: Any = pre_tokenizers.Split(Regex(r"\n|:|\?"), "isolated")
    whole.pre_tokenizer = pre_tokenizers.Sequence([split, lines])
    whole.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return _wrapped(whole, settings)


def end_adding_tokenizer() -> Any:
    """As ``word_tokenizer``, but a text ends with ``</s>``, as T5's does."""
    from tokenizers import processors

    made = word_tokenizer()
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return made


def begin_adding_tokenizer() -> Any:
    """Like Llama's: texts start with ``<s>``, and with a space that was not there."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<s>", 0.0), ("<unk>", 0.0), ("\u2581", -3.0)]
    pieces += [("\u2581" + word, -2.0) for word in (*WORDS, "a")]
    pieces += [(letter, -5.0) for letter in ":?\nabcdefghijklmnopqrstuvwxyzA"]
    whole = Tokenizer(models.Unigram(pieces, unk_id=3))
    whole.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    whole.decoder = decoders.Metaspace(prepend_scheme="always")
    whole.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 2)]
    )
    return _wrapped(whole, {"bos_token": "<s>"})


def _wrapped(whole: Any, settings: dict[str, Any]) -> Any:
    make: Any = PreTrainedTokenizerFast
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", **settings}
    return make(tokenizer_object=whole, **names)


def causal_model(seed: int = 0, **settings: Any) -> Any:
    torch.manual_seed(seed)
    fields = {
        "vocab_size": 24,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "eos_token_id": 1,
        "bos_token_id": None,
        "pad_token_id": None,
        "initializer_range": 0.3,  # far from the uniform distribution of words
    }
    return LlamaForCausalLM(LlamaConfig(**{**fields, **settings})).eval()


def seq2seq_model(seed: int = 0, **settings: Any) -> Any:
    torch.manual_seed(seed)
    fields = {
        "vocab_size": 24,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 4,
        "decoder_start_token_id": 0,
        "initializer_factor": 3.0,
        "tie_word_embeddings": False,
    }
    model = T5ForConditionalGeneration(T5Config(**{**fields, **settings})).eval()
    with torch.no_grad():
        model.lm_head.weight.normal_(0, 1)  # far from the uniform distribution of words
    return model


def records(count: int, seed: int = 0, longest: int = 30) -> list[dict[str, Any]]:
    """Questions of 2 to ``longest`` words and answers of one or two."""
    draw = random.Random(seed)
    made = []
    for place in range(count):
        words = " ".join(draw.choices(WORDS, k=draw.randint(1, longest)))
        answer = " ".join(draw.choices(WORDS[:7], k=draw.randint(1, 2)))
        made.append({"id": f"r{place}", "input": f"{words}\nAnswer:", "output": answer})
    return made


def naive_texts(
    model: Any, encoder: Any, asked: Sequence[dict[str, Any]], new_tokens: int
) -> list[str]:
    """Greedy decoding by the definition: one record, whole forwards, no cache and no padding."""
    texts = []
    model.eval()
    for record in asked:
        source = torch.tensor([encoder.prompt(record)])
        output: list[int] = []
        while len(output) < new_tokens and encoder.end not in output:
            with torch.no_grad():
                if encoder.seq2seq:
                    begun = torch.tensor([[0, *output]])
                    logits = model(input_ids=source, decoder_input_ids=begun).logits
                else:
                    begun = torch.cat([source, torch.tensor([output], dtype=torch.int64)], 1)
                    logits = model(input_ids=begun).logits
            output.append(int(logits[0, -1].argmax()))
        texts.append(encoder.text(output))
    return texts
