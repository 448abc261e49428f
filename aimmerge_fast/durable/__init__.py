"""What must survive a crash: files that are whole or absent, folders that are sealed.

``Checkpoints`` saves and finds the state of a training loop. ``seal`` and ``verify`` do it for a
folder that somebody else fills; ``save_tree`` and ``load_tree`` for one file.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aimmerge_fast.durable.checkpoints import Checkpoints as Checkpoints
    from aimmerge_fast.durable.files import Broken as Broken
    from aimmerge_fast.durable.files import read_json as read_json
    from aimmerge_fast.durable.files import write_bytes as write_bytes
    from aimmerge_fast.durable.files import write_json as write_json
    from aimmerge_fast.durable.manifest import newest_sealed as newest_sealed
    from aimmerge_fast.durable.manifest import read_part as read_part
    from aimmerge_fast.durable.manifest import seal as seal
    from aimmerge_fast.durable.manifest import verify as verify
    from aimmerge_fast.durable.manifest import write_part as write_part
    from aimmerge_fast.durable.tree import load_optimizer as load_optimizer
    from aimmerge_fast.durable.tree import load_tree as load_tree
    from aimmerge_fast.durable.tree import packed_optimizer as packed_optimizer
    from aimmerge_fast.durable.tree import save_tree as save_tree

_NAMES = {
    "checkpoints": ("Checkpoints",),
    "files": ("Broken", "read_json", "write_bytes", "write_json"),
    "manifest": ("newest_sealed", "read_part", "seal", "verify", "write_part"),
    "tree": ("load_optimizer", "load_tree", "packed_optimizer", "save_tree"),
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Load a public name at first use: files alone need no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
