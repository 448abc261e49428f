"""Pytest plugin of the process that interprets the Triton kernels (test_triton_interpreted.py)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from triton.runtime import interpreter

settings.register_profile(
    "interpreted",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=1,  # tests ask for a multiple of it, see tables.examples
    suppress_health_check=[HealthCheck.too_slow],
)


class _Patched:
    """A patched language that stays patched."""

    def restore(self) -> None:
        pass


_patch: Callable[[Any], Any] = interpreter._patch_lang
_patched: set[int] = set()


def _patch_once(function: Any) -> _Patched:
    """Triton patches its language at every launch and at every call of a function in a kernel,
    and that takes nine tenths of the time."""
    module = id(function.__globals__)
    if module not in _patched:
        _patched.add(module)
        _patch(function)
    return _Patched()


interpreter._patch_lang = _patch_once


@pytest.fixture(autouse=True)
def checked_integers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Integers that wrap around are errors, in the tests that reach for their limits."""
    checks = request.module.__name__.endswith(("triton_interpreted", "test_controller_fuzz"))
    builder = interpreter.interpreter_builder
    options = dataclasses.replace(builder.options, debug=checks, sanitize_overflow=checks)
    monkeypatch.setattr(builder, "options", options)


@pytest.fixture(autouse=True)
def ieee_arithmetic() -> Iterator[None]:
    """Inf and NaN are results here, as on a GPU, not warnings."""
    with np.errstate(all="ignore"):
        yield
