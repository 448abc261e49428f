"""A tiny Trainer whose runs are stopped and resumed, and what must be equal afterwards."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from transformers import Trainer, TrainerCallback, TrainingArguments

from aimmerge_fast import AIMConfig, RehearsalMemory
from aimmerge_fast.durable import read_part
from aimmerge_fast.events import Event
from aimmerge_fast.integrations.transformers import AIMMergeCallback
from aimmerge_fast.integrations.transformers.run_folder import MARKER

STEPS = 12
EPOCH = 6  # updates
#: merges within few updates, with weights of their own on both sides
CONFIG: dict[str, Any] = {"s_init": 2, "s_max": 4, "gamma_forget": 0.97, "window": 1}
CONFIG |= {"history_batch": 2, "memory_batch": 2, "alpha_floor": 0.3}
WRITTEN = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")
NOISE = "ignore:`is_gradient_checkpointing`:FutureWarning"  # peft reads it, transformers warns


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    lines = [[draw.randrange(13) for _ in range(6)] for _ in range(count)]
    return [{"input_ids": line, "labels": line} for line in lines]


def llama() -> Any:
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=13,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    return transformers.LlamaForCausalLM(config)


def model() -> Any:
    settings = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.3)
    made = peft.get_peft_model(llama(), settings)
    made.create_or_update_model_card = _short_card  # peft's takes longer than all of the training
    return made


def _short_card(folder: str) -> None:
    Path(folder, "README.md").write_text("A model of a test.")


def memory() -> RehearsalMemory:
    memory = RehearsalMemory(ratio=0.5, seed=1)
    memory.add("before", rows(20, seed=9))
    return memory


class Run:
    """A Trainer with our callback, ready to train the same task every time."""

    def __init__(
        self,
        folder: Path,
        *others: TrainerCallback,
        config: dict[str, Any] | None = None,
        held: RehearsalMemory | None = None,
        resume_from: Path | None = None,
        **fields: Any,
    ) -> None:
        config = {**CONFIG, **(config or {})}
        self.aim = AIMMergeCallback(
            AIMConfig(**config), memory=held if held is not None else memory()
        )
        self.told: dict[int, int] = {}  # step of a checkpoint -> events until then
        chosen: dict[str, Any] = {
            "output_dir": str(folder),
            "use_cpu": True,
            "max_steps": STEPS,
            "save_steps": 1,
            "per_device_train_batch_size": 2,
            "learning_rate": 0.05,
            "logging_strategy": "no",
            "disable_tqdm": True,
            "report_to": "none",
            "dataloader_pin_memory": False,
            "data_seed": 5,
        }
        arguments = TrainingArguments(**{**chosen, **fields})
        size = EPOCH * 2 * arguments.gradient_accumulation_steps
        self.trainer = Trainer(
            model(),
            arguments,
            train_dataset=rows(size, seed=1),  # type: ignore[arg-type]
            callbacks=[self.aim, _Counting(self), *others],
        )
        self.aim.attach(self.trainer, task="now", resume_from=resume_from)

    def train(self, resume: bool | str | Path | None = None) -> Run:
        """Nothing of the process or of the fresh model may matter to a resumed run."""
        if resume:
            torch.manual_seed(12345)
            np.random.seed(12345)
            random.seed(12345)
            for parameter in self.trainer.model.parameters():  # type: ignore[union-attr]
                if parameter.requires_grad:
                    torch.nn.init.uniform_(parameter)
        place = str(resume) if isinstance(resume, Path) else resume
        self.trainer.train(resume_from_checkpoint=place)
        return self

    @property
    def events(self) -> list[Event]:
        return self.aim.events

    @property
    def folder(self) -> Path:
        return Path(str(self.trainer.args.output_dir))


class _Counting(TrainerCallback):
    """Comes after ours: how many events there were when a checkpoint was complete."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._run.told[state.global_step] = len(self._run.events)


class Crash(RuntimeError):
    pass


class CrashAfter(TrainerCallback):
    """Raises when the update after ``step`` begins."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self._step:
            raise Crash


def checkpoint(folder: Path, step: int = STEPS) -> Path:
    return folder / f"checkpoint-{step}"


def checkpoints(folder: Path) -> list[str]:
    """Names of the checkpoints that the Trainer would find."""
    names = (path.name for path in folder.iterdir() if path.name.startswith("checkpoint-"))
    return sorted(names, key=lambda name: int(name.removeprefix("checkpoint-")))


def whole_folder(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def content(folder: Path, ranks: int = 1) -> dict[str, Any]:
    """All of a checkpoint that a training goes on with: the Trainer's files, and our trees."""
    numbered = [f"rng_state_{rank}.pth" for rank in range(ranks)]
    names = WRITTEN if ranks == 1 else (*WRITTEN[:-1], *numbered)
    files = {name: (folder / name).read_bytes() for name in names}
    return {**files, **{f"rank{rank}": read_part(folder, f"rank{rank}") for rank in range(ranks)}}


def differences(mine: Any, theirs: Any, path: str = "") -> list[str]:
    """Where two trees of dicts, lists, tensors and numbers differ, bit for bit."""
    if isinstance(mine, torch.Tensor) and isinstance(theirs, torch.Tensor):
        same = mine.dtype == theirs.dtype and torch.equal(mine, theirs)
    elif isinstance(mine, dict) and isinstance(theirs, dict) and mine.keys() == theirs.keys():
        return [d for key in mine for d in differences(mine[key], theirs[key], f"{path}/{key}")]
    elif isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs):
        pairs = enumerate(zip(mine, theirs, strict=True))
        return [d for number, (a, b) in pairs for d in differences(a, b, f"{path}/{number}")]
    else:
        same = type(mine) is type(theirs) and (mine == theirs or mine != mine)
    return [] if same else [path]


def require_same_end(run: Run, events: list[Event], whole: Run) -> None:
    mine, theirs = content(checkpoint(run.folder)), content(checkpoint(whole.folder))
    assert differences(mine, theirs) == []
    assert events == whole.events


def alone(whole: Run, step: int, folder: Path) -> Path:
    """A copy of the run's folder as it was when checkpoint ``step`` was complete."""
    for number in range(1, step + 1):
        shutil.copytree(checkpoint(whole.folder, number), checkpoint(folder, number))
    shutil.copy(whole.folder / MARKER, folder)
    return checkpoint(folder, step)
