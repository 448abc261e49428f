"""For all tests of the trainers."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from tests.durable.conftest import memory_folder as memory_folder


@pytest.fixture(scope="session", autouse=True)
def quick_collections() -> Iterator[None]:
    """Every Trainer collects garbage; half a million objects of the imports are none."""
    gc.freeze()
    yield
    gc.unfreeze()
