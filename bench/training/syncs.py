"""Count the calls that make the host wait for the device, and say who made them.

On a GPU: the warnings of torch's sync-debug mode. It does not exist for a CPU, where the operations
are counted that would read a value back from a GPU. Both are told apart by the stack: ``method`` is
our engine or the released code's own lines, ``training`` the model, the optimiser and the loop.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import aimmerge_fast

METHOD, TRAINING = "method", "training"
_HERE = Path(__file__).parent
#: Innermost file wins. The released arm's lines and the rivals' stand for the released code.
_METHOD_FILES = (
    str(Path(aimmerge_fast.__file__).parent),
    str(_HERE / "released.py"),
    str(_HERE.parent / "overhead" / "rivals.py"),
)
_TORCH = str(Path(torch.__file__).parent)
#: What torch does for the model and the optimiser, whoever asked for it.
_TRAINING_FOLDERS = tuple(str(Path(_TORCH) / part) for part in ("optim", "nn", "autograd"))
#: Reads tensors that are on the host whatever the device of the model.
_HOST_ONLY = str(Path(_TORCH) / "utils" / "data")
_READS_BACK = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
}
_STANDARD = str(Path(warnings.__file__).parent)
_WARNING = "called a synchronizing CUDA operation"


class Counts(dict[str, int]):
    """Synchronising calls by who made them."""

    def __init__(self) -> None:
        super().__init__({METHOD: 0, TRAINING: 0})

    def note(self, frame: FrameType | None) -> None:
        """Add one for the owner of this stack, unless it read a tensor of the host."""
        who = owner(frame)
        if who:
            self[who] += 1


def owner(frame: FrameType | None) -> str | None:
    """Who made the call that this stack ends in; None for tensors that never leave the host."""
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_HOST_ONLY):
            return None
        if file.startswith(_METHOD_FILES):
            return METHOD
        if not _passes_on(file):
            return TRAINING
        frame = frame.f_back
    return TRAINING


def _passes_on(file: str) -> bool:
    """Whether this file only hands a call on: the rest of torch, the standard library, we here."""
    if file.startswith(_TORCH):
        return not file.startswith(_TRAINING_FOLDERS)
    library = file.startswith((_STANDARD, "<")) and "-packages" not in file
    return library or file == __file__


@contextmanager
def counted(device: torch.device) -> Iterator[Counts]:
    """Counts of what runs inside, filled while it runs."""
    counts = Counts()
    if device.type == "cuda":
        with _debug_mode(counts):
            yield counts
        return
    with _Reads(counts):
        yield counts


class _Reads(TorchDispatchMode):
    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self._counts = counts

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _READS_BACK:
            self._counts.note(sys._getframe(1))
        return func(*args, **(kwargs or {}))


@contextmanager
def _debug_mode(counts: Counts) -> Iterator[None]:
    def show(message: Warning | str, category: type[Warning], *rest: Any) -> None:
        if _WARNING in str(message):
            counts.note(sys._getframe(1))
        else:
            shown(message, category, *rest)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        shown = warnings.showwarning
        warnings.showwarning = show
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)
