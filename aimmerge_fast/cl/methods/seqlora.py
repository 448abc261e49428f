"""SeqLoRA: one adapter, task after task (algorithm.md B.1)."""

from __future__ import annotations

from aimmerge_fast.cl.methods.base import Method


class SeqLoRA(Method):
    """One LoRA trained on each task in turn: no memory, no penalty. What forgetting looks like."""

    label = "SeqLoRA"
    summary = "one adapter, task after task"
