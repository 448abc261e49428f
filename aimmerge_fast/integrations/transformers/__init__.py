"""AIMMerging in the Trainer of transformers and in those built on it (TRL's SFTTrainer, ...).

``AIMMergeCallback`` goes into ``callbacks=[...]`` and is attached to the trainer; nothing of
transformers is patched. ``trainer_loss`` is for trainers whose loss is their own.
"""

from __future__ import annotations

from aimmerge_fast.integrations.transformers.callback import AIMMergeCallback
from aimmerge_fast.integrations.transformers.loss import trainer_loss

__all__ = ["AIMMergeCallback", "trainer_loss"]
