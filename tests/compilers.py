"""``torch.compile`` for tests: no graph breaks, no second compilation, nothing kept."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

#: No probing of vector instructions, no compiled headers, no pool of processes: seconds saved.
_QUICK = {"cpp.vec_isa_ok": False, "cpp_cache_precompile_headers": False, "compile_threads": 1}


def compiled(function: Callable[..., Any], compiler: str) -> Callable[..., Any]:
    """``function`` as one graph; compiling it anew for other tensors of these shapes raises."""
    options = _QUICK if compiler == "inductor" else None
    made = torch.compile(function, fullgraph=True, backend=compiler, options=options)

    def call(*arguments: Any) -> Any:
        with torch._dynamo.config.patch(error_on_recompile=True):
            return made(*arguments)

    return call


@contextmanager
def fresh(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[None]:
    """Compilers that know nothing and leave nothing behind outside ``folder``."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
    torch.compiler.reset()
    with warnings.catch_warnings():
        # what inductor imports warns of its own age
        warnings.filterwarnings("ignore", message="`torch.jit.script", category=DeprecationWarning)
        yield
    torch.compiler.reset()
