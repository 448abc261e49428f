"""Count the kernels that one call starts."""

from __future__ import annotations

import os

import torch

from overhead.timing import Call

#: Torch operations that start no kernel: they allocate or re-describe memory.
_NO_KERNEL = frozenset(
    f"aten::{name}"
    for name in (
        *("empty", "empty_like", "empty_strided", "as_strided", "view", "detach", "alias"),
        *("reshape", "slice", "select", "unsqueeze", "squeeze", "expand", "unbind", "resolve_conj"),
        *("resolve_neg", "result_type", "lift_fresh", "_reshape_alias", "split", "item"),
    )
)

# Read at the profiler's first use: without it every use writes two lines to the terminal.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


def count(call: Call, device: torch.device, unseen: int = 0) -> int | None:
    """Kernels of one call.

    On a GPU: the device's kernels, copies and fills; None where the profiler does not see them. On
    a CPU: torch operations that call no other, and ``unseen``, the call's own compiled code.
    """
    call()
    if device.type == "cuda":
        return on_device(call, device) if on_device(_fill(device), device) == 1 else None
    # The plain recorder: Kineto's costs a second per use.
    with torch.autograd.profiler.profile(use_kineto=False) as record:
        call()
    return sum(_starts_kernel(event) for event in record.function_events) + unseen


def on_device(call: Call, device: torch.device) -> int:
    """Kernels, copies and fills that torch's profiler sees on a GPU during ``call``."""
    activity = torch.profiler.ProfilerActivity
    torch.cuda.synchronize(device)
    with torch.profiler.profile(activities=[activity.CPU, activity.CUDA]) as trace:
        call()
        torch.cuda.synchronize(device)
    return sum(event.device_type.name == "CUDA" for event in trace.events())


def _fill(device: torch.device) -> Call:
    """One kernel, to see whether the profiler works: in some containers it sees nothing."""
    tensor = torch.zeros(1 << 10, device=device)
    return lambda: tensor.fill_(1.0)


def _starts_kernel(event: torch.autograd.profiler_util.FunctionEvent) -> bool:
    children = [child for child in event.cpu_children if child.name not in _NO_KERNEL]
    return event.name.startswith("aten::") and event.name not in _NO_KERNEL and not children
