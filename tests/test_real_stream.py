"""bench/real_stream.py on a tiny model: all arms, killed and resumed, refusals, exact match."""

from __future__ import annotations

import importlib
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCH = Path(__file__).resolve().parent.parent / "bench"
TASKS = {"colour": ["red", "green", "dark blue"], "size": ["small", "very large"], "age": ["old"]}
STEPS = 12


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of bench/ by name."""
    monkeypatch.syspath_prepend(str(BENCH))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``model`` (tiny Llama and a tokenizer of its own) and ``data``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    root = tmp_path_factory.mktemp("world")
    texts = []
    for task, labels in TASKS.items():
        for split, count in (("train", 48), ("dev", 20), ("test", 10)):
            if split == "test" and task == "colour":
                continue  # like the benchmark's tasks that have no test file
            records = _records(task, labels, split, count)
            texts += [record["input"] + " " + record["output"] for record in records]
            (root / "data" / split).mkdir(parents=True, exist_ok=True)
            (root / "data" / split / f"{task}_T5.json").write_text(json.dumps(records))
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    words.train_from_iterator(texts, trainer)
    make: Callable[..., Any] = PreTrainedTokenizerFast
    make(tokenizer_object=words, eos_token="<end>").save_pretrained(root / "model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words.get_vocab()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=0,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(root / "model")
    return root


def _records(task: str, labels: list[str], split: str, count: int) -> list[dict[str, str]]:
    draw = random.Random(f"{task}/{split}")
    records = []
    for place in range(count):
        label = draw.choice(labels)
        body = " ".join(draw.choice(["it", "is", "seen", label]) for _ in range(12))
        question = f"What is the {task}? Option: {', '.join(labels)}."
        text = f"{question}\nText: {body}\n\nAnswer:"
        records.append({"id": f"{task}_{place}", "input": text, "output": label})
    return records


def _arguments(world: Path, out: Path, *more: str) -> list[str]:
    fixed = ["--model", str(world / "model"), "--data", str(world / "data"), "--out", str(out)]
    fixed += ["--tasks", "colour,size,age", "--steps", str(STEPS), "--batch", "4", "--lr", "0.01"]
    fixed += ["--max-tokens", "40", "--memory-ratio", "0.2", "--s-init", "2", "--eval-items", "6"]
    return [*fixed, "--threads", "1", "--save-every", "5", "--log-every", "1", *more]


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The JSON of an uninterrupted run of all arms."""
    out = tmp_path_factory.mktemp("whole")
    command = _arguments(world, out / "run", "--json", str(out / "result.json"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        assert importlib.import_module("real_stream").main(command) == 0
    found: dict[str, Any] = json.loads((out / "result.json").read_text())
    return found


def test_all_arms_are_trained_and_reported(whole: dict[str, Any]) -> None:
    assert list(whole["arms"]) == ["plain", "replay", "aim"]
    assert whole["first_task_same_bits"]
    for arm in whole["arms"].values():
        assert [len(arm["after"][task]) for task in TASKS] == [1, 2, 3]
        assert all(len(losses) == STEPS for losses in arm["losses"].values())
        assert all(0 <= score <= 1 for score in arm["before"].values())
    aim = whole["arms"]["aim"]
    assert aim["settings"]["config"]["s_init"] == 2
    assert aim["merges"]["colour"] == []
    assert all(len(aim["merges"][task]) >= 3 for task in ("size", "age"))
    assert {"step", "kind", "S", "t", "F", "learning_signal", "next_S"} <= set(
        aim["merges"]["age"][0]
    )
    assert aim["events"]["size"]["events"]["probe"] >= STEPS
    assert "half of dev (10) selects" in whole["settings"]["test_split"]["colour"]
    last = {name: arm["adapter_sha256"]["age"] for name, arm in whole["arms"].items()}
    assert len(set(last.values())) == 3


@pytest.mark.parametrize(("arm", "after"), [("plain", 7), ("replay", 17), ("aim", 20), ("aim", 29)])
def test_interrupted_run_ends_with_the_same_bits(
    module: Any,
    world: Path,
    whole: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arm: str,
    after: int,
) -> None:
    """``after`` batches of the run are taken; 5 is between two saves, 12 at the end of a task."""
    command = _arguments(world, tmp_path / "run", "--arms", arm, "--json", str(tmp_path / "j"))
    arms, taken = module("stream.arms"), []
    original = arms.batch_at

    def batch_at(*args: Any) -> Any:
        taken.append(args)
        if len(taken) > after:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(arms, "batch_at", batch_at)
    with pytest.raises(KeyboardInterrupt):
        module("real_stream").main(command)
    monkeypatch.setattr(arms, "batch_at", original)
    assert module("real_stream").main(command) == 0
    found = json.loads((tmp_path / "j").read_text())["arms"][arm]
    wanted = whole["arms"][arm]
    for key in ("adapter_sha256", "losses", "before", "after", "merges", "events"):
        assert found.get(key) == wanted.get(key), key


def test_killed_process_ends_with_the_same_bits(
    module: Any, world: Path, whole: dict[str, Any], tmp_path: Path, capsys: Any
) -> None:
    command = _arguments(world, tmp_path / "run", "--arms", "aim", "--json", str(tmp_path / "j"))
    process = subprocess.Popen(
        [sys.executable, str(BENCH / "real_stream.py"), *command], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            if line.startswith(f"[aim] size step 8/{STEPS}"):
                break
    process.kill()
    assert process.wait() == -9
    assert not (tmp_path / "j").exists()
    assert module("real_stream").main(command) == 0
    assert "continues: 1 tasks and 5 steps" in capsys.readouterr().out
    found = json.loads((tmp_path / "j").read_text())["arms"]["aim"]
    assert found["adapter_sha256"] == whole["arms"]["aim"]["adapter_sha256"]
    assert found["merges"] == whole["arms"]["aim"]["merges"]


def test_finished_arm_is_not_run_again_and_foreign_folder_is_refused(
    module: Any, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    stream = module("real_stream")
    small = ["--steps", "2", "--arms", "plain"]
    assert stream.main(_arguments(world, tmp_path / "run", *small)) == 0
    with monkeypatch.context() as patch:
        patch.setattr(module("stream.arms").Arm, "_train_task", None)
        assert stream.main(_arguments(world, tmp_path / "run", *small)) == 0
    capsys.readouterr()
    assert stream.main(_arguments(world, tmp_path / "run", *small, "--lr", "0.02")) == 2
    assert "holds a run with lr=0.01, not 0.02" in capsys.readouterr().err
    with stream.lock(tmp_path / "run" / "plain"):
        assert stream.main(_arguments(world, tmp_path / "run", *small)) == 2
    assert "another process is running" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tasks", "colour,weight"], "task 'weight' has no file"),
        (["--max-tokens", "1"], "its answer fills all 1 tokens"),
        (["--set", "window=99"], "window=99"),
        (["--set", "windows=3"], "unknown config field 'windows'"),
        (["--model", "nowhere.gguf"], "no such folder, .gguf file or .whl file"),
    ],
)
def test_bad_input_is_one_clear_error(
    module: Any, world: Path, tmp_path: Path, capsys: Any, more: list[str], message: str
) -> None:
    assert module("real_stream").main(_arguments(world, tmp_path / "run", *more)) == 2
    assert message in capsys.readouterr().err


def test_a_long_prompt_keeps_question_answer_word_and_label(module: Any, world: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(world / "model")
    encoder = module("stream.data").Encoder(tokenizer, 40)
    record = {"input": "What?\nText: " + "it is seen " * 40 + "\n\nAnswer:", "output": "dark blue"}
    prompt, answer = encoder.encode(record)
    assert len(prompt) + len(answer) == 40
    text = str(tokenizer.decode(prompt))
    assert text.startswith("What?\nText: it is")
    assert text.endswith("\n\nAnswer:")
    assert tokenizer.decode(answer) == " dark blue<end>"
    batch = encoder.collate([record, {"input": "Q:", "output": "old"}])
    labels = [row[row != -100].tolist() for row in batch["labels"]]
    assert labels == [answer, encoder.answer({"output": "old"})]


def test_accuracy_is_that_of_plain_greedy_generation(module: Any, world: Path) -> None:
    """Including outputs right in another case or spelling, which one forward cannot decide."""
    model_of, data = module("stream.model"), module("stream.data")
    model, tokenizer = model_of.load_model(world / "model", torch.float32, "eager")
    encoder, loss = data.Encoder(tokenizer, 40), model_of.AnswerLoss(model)
    assert loss.plain_head
    records = _records("colour", TASKS["colour"], "train", 48)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(25):
        loss(model, encoder.collate(records)).backward()
        optimizer.step()
        optimizer.zero_grad()
    asked = [{**r, "output": r["output"].upper()} if i % 2 else r for i, r in enumerate(records)]
    right = 0
    for record in asked:
        ids = torch.tensor([encoder.encode(record)[0]])
        output = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
        right += encoder.text(output[0, ids.shape[1] :].tolist()) == record["output"].lower()
    assert 0 < right < len(asked)
    assert module("stream.score").accuracy(model, loss, encoder, asked) == right / len(asked)
