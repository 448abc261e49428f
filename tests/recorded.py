"""A small recorded trace, and how simulated and recorded values are compared."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

TRACE: dict[str, Any] = {
    "id": "small",
    "policy": "paper",
    "config": {"s_init": 4},
    "history_loss": [0.1] * 20,
    "delta_l1": [8.0, 6.0],
}


def write(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def agree(got: Any, expected: Any) -> bool:
    """Equal, floats to 1e-12 relative, keys and their set included."""
    if isinstance(expected, dict):
        return got.keys() == expected.keys() and all(agree(got[k], expected[k]) for k in expected)
    if isinstance(expected, list):
        return len(got) == len(expected) and all(map(agree, got, expected))
    if isinstance(expected, float):
        return isinstance(got, float) and math.isclose(got, expected, rel_tol=1e-12)
    return type(got) is type(expected) and bool(got == expected)
