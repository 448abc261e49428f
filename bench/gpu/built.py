"""Whether the module that Python loads was built by stage ``build`` from this tree's sources."""

from __future__ import annotations

import hashlib
import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Digest of the sources that were built; the folder is one that git ignores.
RECORD = ROOT / "build/gpu_check.sources"


def sources(root: Path = ROOT) -> str:
    """A digest of everything that the compiled module is made of."""
    digest = hashlib.sha256()
    files = [path for path in sorted(root.glob("csrc/**/*")) if path.is_file()]
    for path in (*files, root / "setup.py"):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def note() -> None:
    """Remember what was built."""
    RECORD.parent.mkdir(exist_ok=True)
    RECORD.write_text(sources() + "\n", encoding="utf-8")


def is_built() -> bool:
    """The record is of these sources, and the module with CUDA kernels lies in this tree."""
    if not RECORD.exists() or RECORD.read_text(encoding="utf-8").strip() != sources():
        return False
    try:
        native = importlib.import_module("aimmerge_fast._native")
    except ImportError:
        return False
    here = ROOT.resolve() in Path(str(native.__file__)).resolve().parents
    return here and hasattr(native, "CudaEngine")


if __name__ == "__main__":
    sys.exit(not is_built())
