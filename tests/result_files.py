"""Heads of hand-made results files, and how to write the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HEAD = {
    "versions": {"python": "3.12.1", "torch": "2.13.0", "triton": None, "aimmerge_fast": "0.1"},
    "date": "2026-12-01T10:00:00+00:00",
}
CPU = {"device": "CPU: Made, 2 threads", "commit": "0123456789abcdef-dirty", **HEAD}
GPU = {"device": "Made H100", "driver": "570.1", "commit": "fedcba9876543210", **HEAD}


def made(folder: Path, **files: Any) -> Path:
    for name, record in files.items():
        (folder / f"{name}.json").write_text(json.dumps(record))
    return folder
