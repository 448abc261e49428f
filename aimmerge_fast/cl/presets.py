"""Settings of the paper's tables, as far as the methods here go; any of them can be overridden.

Not stated in the paper and taken from the authors' code: schedule, warm-up, clipping (algorithm.md
A.5 #44). Three seeds stand for the paper's three runs (#45).
"""

from __future__ import annotations

from typing import Any

_PAPER: dict[str, Any] = {
    "epochs": 10,
    "batch": 8,
    "lr": 3e-4,
    "schedule": "linear",
    "warmup": 50,
    "max_grad_norm": 1.0,
    "seeds": [42, 43, 44],
}
_RELEASED: dict[str, Any] = {
    **_PAPER,
    "batch": 32,
    "micro_batch": 8,
    "seeds": [42],
    "select": "best",
    "memory_rule": "released",
    "variant": "faithful",
}


def _aim(**settings: Any) -> dict[str, Any]:
    return {"method": "aim", "settings": settings}


PRESETS: dict[str, dict[str, Any]] = {
    "released": {**_RELEASED, "arms": ["aim-released"]},
    "table1": {
        **_PAPER,
        "arms": ["fixed", _aim(schedule="slow+"), _aim(schedule="rapid+")],
    },
    "table2": {
        **_PAPER,
        "single": True,  # FWT needs every task trained alone
        "arms": ["seqlora", "inclora", "replay", "tasl", "kif", "aim", "mtl"],
    },
    "table3": {**_PAPER, "single": True, "arms": ["aim", "aim-ls", "aim-fs", "aim-mgm", "aim-ifm"]},
    "table5": {
        **_PAPER,
        "arms": [
            {"method": method, "name": f"{method}-{percent}%", "memory_ratio": percent / 100}
            for method in ("replay", "aim")
            for percent in (2, 5, 10, 50)
        ],
    },
    "table6": {**_PAPER, "epochs": 1, "seeds": [42], "arms": ["replay", "tasl", "kif", "aim"]},
    "table7": {
        **_PAPER,
        "stream": "cross19",
        "single": True,
        "arms": ["replay", "kif", "aim", "mtl"],
    },
    "table8": {
        **_PAPER,
        "stream": "order1",
        "arms": [
            *(_aim(s_init=s) for s in (2, 8, 16, 32)),
            *(_aim(window=w) for w in (2, 4, 8)),
            *(_aim(s_min=low, s_max=high) for low, high in ((8, 128), (8, 64), (2, 64))),
            *(_aim(gamma_forget=g) for g in (8, 16, 32)),
            *(_aim(f_max=f) for f in (2, 4, 8)),
        ],
    },
    "table9": {
        **_PAPER,
        "stream": "order6",
        "single": True,
        "arms": ["replay", "seqlora+memory", "inclora+memory", "tasl+memory", "aim"],
    },
}


def preset_fields(name: str) -> dict[str, Any]:
    """The settings of a preset; ``ValueError`` lists the known."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; the presets are {', '.join(PRESETS)}")
    return dict(PRESETS[name])
