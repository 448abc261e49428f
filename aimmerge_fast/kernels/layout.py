"""The bytes that host and device share: configuration, state and record, field by field.

The twin of the structs in ``csrc/core/controller.h``; a test compares offsets and sizes. A ring
holds the newest ``RING_SIZE`` records; record number k (from 1) lies at ``(k - 1) % RING_SIZE``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from aimmerge_fast.config import MAX_MERGE_AT, MAX_WINDOW, POLICIES, SCHEDULES, AIMConfig
from aimmerge_fast.events import CODES

RING_SIZE = 1024
OPEN, CLOSE = 16, 17  # record codes of the two halves of a merge
IDLE, MERGE_OPEN = 0, 1  # State.phase

_DOUBLES = (
    ("gamma_forget", "f8"),
    ("gamma_plus_small", "f8"),
    ("gamma_minus_small", "f8"),
    ("gamma_plus_large", "f8"),
    ("gamma_minus_large", "f8"),
    ("p_new_cold", "f8"),
    ("alpha_floor", "f8"),
    ("alpha_new", "f8"),
)
_CONFIG_INTEGERS = (
    *("policy", "schedule", "s_init", "s_min", "s_max", "s_hi", "window", "f_max", "s_switch"),
    *("use_learning_signal", "use_forgetting_signal"),
    *("outer_init", "cold_start", "s_weight", "adaptive", "merge_at_count"),
)
_STATE_INTEGERS = (
    *("ring_size", "task", "S", "t", "F", "g", "samples", "has_threshold", "history_count"),
    *("merges", "memory_steps", "code", "phase", "reject"),
    *("elapsed", "cold", "L_up", "L_down", "case_", "defer"),
)

CONFIG = np.dtype(
    [
        *_DOUBLES,
        ("seed", "u8"),
        *((name, "i4") for name in _CONFIG_INTEGERS),
        ("merge_at", "i4", (MAX_MERGE_AT,)),
    ],
    align=True,
)
STATE = np.dtype(
    [
        *((name, "f8") for name in ("sum", "threshold", "loss", "l1", "lambda", "change_factor")),
        *((name, "f8") for name in ("alpha1", "alpha2", "partial_l1", "partial_bad")),
        ("history", "f8", (MAX_WINDOW + 1,)),
        ("sequence", "i8"),
        ("ring", "u8"),
        *((name, "i4") for name in _STATE_INTEGERS),
    ],
    align=True,
)
RECORD = np.dtype(
    [
        ("sequence", "i8"),
        ("loss", "f8"),
        ("threshold", "f8"),
        ("l1", "f8"),
        *((name, "i4") for name in ("t", "S", "F", "code", "merge", "memory_steps", "next_S")),
        ("reject", "i4"),
    ]
)
BLOCK = np.dtype([("config", CONFIG), ("state", STATE)])

Block = Any  # a numpy.void of dtype BLOCK; numpy has no type for structured scalars


def code_number(name: str) -> int:
    """Number of a code of ``events.CODES`` in the device records."""
    return CODES.index(name)


def block(state: torch.Tensor) -> Block:
    """The configuration and state at the start of CPU bytes, as a writable view (no copy)."""
    return state.numpy()[: BLOCK.itemsize].view(BLOCK)[0]


def offset_in_state(field: str) -> int:
    """Where a field of State lies in a state tensor, in bytes."""
    fields = STATE.fields
    assert fields is not None
    return CONFIG.itemsize + fields[field][1]


def write_config(target: Block, config: AIMConfig) -> None:
    """Write the settings that the controller reads; a setting the policy lacks stays zero."""
    fields = target["config"]
    fields["policy"] = POLICIES.index(config.policy)
    fields["schedule"] = SCHEDULES.index(config.schedule)
    fields["alpha_new"] = math.nan if config.alpha_new is None else config.alpha_new
    fields["s_hi"] = 0 if config.s_hi is None else config.s_hi
    fields["seed"] = config.seed
    fields["merge_at_count"] = len(config.merge_at)
    fields["merge_at"] = 0
    fields["merge_at"][: len(config.merge_at)] = config.merge_at
    written = {"policy", "schedule", "alpha_new", "s_hi", "seed", "merge_at_count", "merge_at"}
    for name in CONFIG.names or ():
        if name not in written:
            fields[name] = getattr(config, name) or 0


def begin_task(target: Block, task: int, first_interval: int) -> None:
    """Start a task in place: everything is per task except the ring and its sequence number."""
    state = target["state"]
    for name in STATE.names or ():
        if name not in ("sequence", "ring", "ring_size", "defer"):
            state[name] = 0
    state["task"] = task
    state["S"] = first_interval
    state["memory_steps"] = target["config"]["outer_init"]
    state["change_factor"] = math.nan


def abandon_merge(target: Block) -> None:
    """Make the open merge keep theta_j: alpha = (1, 0), in place."""
    target["state"]["alpha1"], target["state"]["alpha2"] = 1.0, 0.0


def restart_interval(target: Block, *, steps: int, t: int, F: int) -> None:
    """Begin the interval anew in place, with ``steps`` of the task done, of them t in it."""
    state = target["state"]
    for name in ("sum", "samples", "has_threshold", "code", "phase"):
        state[name] = 0
    state["g"], state["t"], state["F"] = steps, t, F
