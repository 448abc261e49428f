"""Profiles of the property tests: ``ci`` (default) is the same on every run, ``nightly`` searches.

``HYPOTHESIS_PROFILE=nightly`` or ``pytest --hypothesis-profile=nightly`` takes the other one.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

# How fast examples are drawn depends on what else the machine does.
_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}

settings.register_profile("ci", derandomize=True, database=None, max_examples=100, **_COMMON)
settings.register_profile("nightly", max_examples=2_000, print_blob=True, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# Two compilers at once in one cache folder read each other's half-written headers.
_worker = os.environ.get("PYTEST_XDIST_WORKER")
if _worker:
    _folder = f"{tempfile.gettempdir()}/inductor-{os.getuid()}-{_worker}"
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = _folder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors on one thread: a second one costs a scheduler quantum where cores are busy.

    Tests of threads set their number themselves.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
