"""What a merger cannot be attached to, and the option that allows it where there is one."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import HubStrategy, SaveStrategy

from aimmerge_fast.config import AIMConfig

log = logging.getLogger(__name__)
_FUSED_OPTIMIZERS = ("lomo", "adalomo")


def require_config(config: AIMConfig) -> None:
    if config.probe == "in_batch":
        raise ValueError(
            "probe='in_batch': a Trainer shows its batches to no callback; choose 'before' or "
            "'after', or call FastAIMMerger in a loop of your own"
        )


def require_attachable(
    trainer: object,
    callback: TrainerCallback,
    config: AIMConfig,
    *,
    beside_others: bool,
    best_model: bool,
) -> Trainer:
    """``trainer``, when a merger can work in it.

    Raises:
        TypeError: no Trainer.
        ValueError: naming what stands against it, and what to do.
    """
    if not isinstance(trainer, Trainer):
        raise TypeError(f"attach() takes a transformers.Trainer, got a {type(trainer).__name__}")
    _require_listed(trainer, callback)
    if not beside_others:
        _require_alone(trainer, callback)
    elif _saves(trainer):
        raise ValueError(
            "beside_others=True and checkpoints: two mergers cannot share one checkpoint's state; "
            "set save_strategy='no' and enable_jit_checkpoint=False"
        )
    _require_one_engine(trainer)
    _require_arguments(trainer.args)
    if _saves(trainer):
        _require_pushed_whole(trainer.args)
    _require_last_weights(trainer.args, config, best_model)
    _require_unmerged(trainer.model)
    return trainer


def _require_listed(trainer: Trainer, callback: TrainerCallback) -> None:
    callbacks = trainer.callback_handler.callbacks
    if not any(other is callback for other in callbacks):
        names = ", ".join(type(other).__name__ for other in callbacks)
        raise ValueError(
            f"{type(trainer).__name__} does not have this callback (it has {names}); pass "
            "callbacks=[aim] to it, or call trainer.add_callback(aim), before attach()"
        )


def _require_alone(trainer: Trainer, callback: TrainerCallback) -> None:
    others = [
        other
        for other in trainer.callback_handler.callbacks
        if other is not callback and isinstance(other, type(callback))
    ]
    if others:
        raise ValueError(
            f"the trainer has {len(others) + 1} mergers, and each would merge what the others "
            "changed; remove the others, or attach each with beside_others=True (for adapters "
            "that differ)"
        )


def _saves(trainer: Trainer) -> bool:
    return trainer.args.save_strategy != SaveStrategy.NO or trainer.args.enable_jit_checkpoint


def _require_one_engine(trainer: Trainer) -> None:
    """PyTorch's own parallelism: one device, a device map, DDP or FSDP2."""
    state = trainer.accelerator.state
    fsdp = getattr(state, "fsdp_plugin", None)
    mesh = getattr(trainer.accelerator, "parallelism_config", None)
    sizes = {name: getattr(mesh, f"{name}_size", 1) for name in ("tp", "cp", "sp")}
    split = [name for name, size in sizes.items() if size and size > 1]
    if trainer.is_deepspeed_enabled:
        found, instead = "DeepSpeed", "DDP or FSDP2: drop deepspeed="
    elif fsdp is not None and getattr(fsdp, "fsdp_version", 1) != 2:
        found, instead = "FSDP version 1", "version 2: fsdp_config={'version': 2}"
    elif getattr(trainer, "is_fsdp_xla_enabled", False):
        found, instead = "FSDP on XLA", "DDP or FSDP2"
    elif split:
        found, instead = f"{split[0]}_size={sizes[split[0]]}", "DDP or FSDP2 alone"
    elif getattr(trainer, "is_distributed_loading_by_transformers", False):
        found, instead = "a model that from_pretrained sharded", "DDP, or FSDP2 by fsdp=True"
    elif trainer.args.n_gpu > 1:
        found = f"nn.DataParallel over {trainer.args.n_gpu} GPUs"
        instead = "torchrun, or show one GPU by CUDA_VISIBLE_DEVICES"
    else:
        return
    raise ValueError(
        f"the trainer runs {found}, whose parameters a merger cannot write in place; use {instead}"
    )


def _require_arguments(args: Any) -> None:
    if args.auto_find_batch_size:
        raise ValueError(
            "auto_find_batch_size=True begins the training anew when memory runs out, with weights "
            "that were merged already; set it to False and give per_device_train_batch_size"
        )
    optim = str(getattr(args.optim, "value", args.optim))
    if optim in _FUSED_OPTIMIZERS or optim.endswith("_layerwise"):
        raise ValueError(
            f"optim={optim!r} updates within the backward pass, where memory steps cannot follow "
            "it; choose another optimizer, adamw_torch for instance"
        )


def _require_pushed_whole(args: Any) -> None:
    if args.push_to_hub and args.hub_strategy in (
        HubStrategy.CHECKPOINT,
        HubStrategy.ALL_CHECKPOINTS,
    ):
        raise ValueError(
            f"hub_strategy={HubStrategy(args.hub_strategy).value!r} pushes a checkpoint before it "
            "holds the merger's state, so no training goes on from it; choose 'every_save' or "
            "'end', and copy checkpoints when the training is over"
        )


def _require_last_weights(args: Any, config: AIMConfig, best_model: bool) -> None:
    if not args.load_best_model_at_end:
        return
    if not best_model:
        raise ValueError(
            "load_best_model_at_end=True puts weights from before the last merges under the next "
            "task; set it to False, or attach with best_model=True where that is what you want"
        )
    if config.schedule == "single" or config.merge_at_task_end:
        final = "schedule='single'" if config.schedule == "single" else "merge_at_task_end=True"
        raise ValueError(
            f"load_best_model_at_end=True undoes the merge at the task's end, which {final} asks "
            "for; drop one of them"
        )


def _require_unmerged(model: nn.Module | None) -> None:
    for layer in model.modules() if model is not None else ():
        merged = getattr(layer, "merged_adapters", None)
        if merged:
            raise ValueError(
                f"adapter {merged[0]!r} is merged into the base weights; call "
                "model.unmerge_adapter() before attach()"
            )


def warn_of_dataset(dataset: object) -> None:
    """Of a train_dataset that a memory cannot choose records from, before it is trained on."""
    sequence = hasattr(dataset, "__len__") and not isinstance(dataset, IterableDataset)
    if dataset is not None and not sequence:
        log.warning(
            "aimmerge_fast: train_dataset is a %s, and memory.add takes a sequence: "
            "memory.add(name, list(itertools.islice(trainer.train_dataset, n))) after the training",
            type(dataset).__name__,
        )
