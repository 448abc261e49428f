"""The loss of a trainer's model on a batch, as the trainer computes it, its metrics left alone."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import Trainer

from aimmerge_fast.passes import Batch, LossFn

#: What the trainers of TRL count in ``compute_loss`` and log later.
_COUNTED = ("_metrics", "_total_train_tokens")


def model_loss(model: Any, batch: Batch) -> torch.Tensor:
    """The loss that the model returns for a batch with labels, where ``Trainer`` looks for it."""
    outputs = model(**batch)
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs[0]
    if not isinstance(loss, torch.Tensor):
        raise TypeError(
            "the model returned no loss for a batch of memory records; are their labels among "
            "what the collator takes?"
        )
    return loss


def fused_loss(model: Any, batch: Batch) -> torch.Tensor:
    """The loss of TRL's fused head, which never makes the logits that training does not make."""
    loss: torch.Tensor = model(**batch, fused_lm_head=True).loss
    return loss


def trainer_loss(trainer: Trainer) -> LossFn:
    """``trainer.compute_loss`` as a ``loss_fn``, for trainers whose loss is their own.

    ::

        aim.attach(trainer, task="chat", loss_fn=trainer_loss(trainer))

    What the trainer counts in there for its logs is put back. The waits of such a ``compute_loss``
    for the device (``.item()`` in TRL's metrics) stay: a loss function of your own avoids them.
    """

    def loss_fn(model: Any, batch: Batch) -> torch.Tensor:
        with _uncounted(trainer), trainer.compute_loss_context_manager():
            loss: Any = trainer.compute_loss(model, dict(batch))
        return loss  # type: ignore[no-any-return]

    return loss_fn


def loss_of(trainer: Trainer) -> LossFn:
    """What the trainer trains on, computed by the model alone.

    Raises:
        ValueError: the trainer computes its loss in a way of its own.
    """
    reason = _own_loss(trainer)
    if reason:
        raise ValueError(
            f"{type(trainer).__name__} {reason}, so the model's own loss is not what it trains on; "
            "give attach() loss_fn=trainer_loss(trainer), or a (model, batch) -> loss of yours"
        )
    return fused_loss if _has_fused_head(trainer) else model_loss


def _own_loss(trainer: Trainer) -> str | None:
    """Why the model's loss is not the trainer's; None where it is."""
    sft = _sft_trainer(trainer)
    known = [Trainer.compute_loss, *([sft.compute_loss] if sft else [])]
    if getattr(trainer.compute_loss, "__func__", None) not in known:
        return "has a compute_loss of its own"
    if trainer.compute_loss_func is not None:
        return "was given compute_loss_func"
    if trainer.label_smoother is not None:
        return f"smooths labels (label_smoothing_factor={trainer.args.label_smoothing_factor})"
    loss_type = getattr(trainer.args, "loss_type", "nll") if sft else "nll"
    return None if loss_type == "nll" else f"has loss_type={loss_type!r}"


def _sft_trainer(trainer: Trainer) -> Any:
    """TRL's SFTTrainer when ``trainer`` is one; TRL is not imported unless somebody else has."""
    module = sys.modules.get("trl.trainer.sft_trainer")
    found = getattr(module, "SFTTrainer", None)
    return found if found is not None and isinstance(trainer, found) else None


def _has_fused_head(trainer: Trainer) -> bool:
    sft = _sft_trainer(trainer)
    return sft is not None and hasattr(sys.modules[sft.__module__], "add_fused_lm_head")


@contextmanager
def _uncounted(trainer: Any) -> Iterator[None]:
    kept = {name: vars(trainer)[name] for name in _COUNTED if name in vars(trainer)}
    vars(trainer).update(copy.deepcopy(kept))
    try:
        yield
    finally:
        vars(trainer).update(kept)
