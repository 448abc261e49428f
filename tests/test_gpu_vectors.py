"""The controller on the GPU agrees with every trace of the test vectors."""

from __future__ import annotations

import pytest

from tests import gpu
from tests.backends import BackendController
from tests.traces import Trace, config_of, load_traces, run_trace

pytestmark = [gpu.REQUIRED, pytest.mark.parametrize("backend", gpu.BACKENDS)]


@pytest.mark.parametrize("trace", load_traces(), ids=lambda trace: trace["id"])
def test_trace(trace: Trace, backend: str) -> None:
    controller = BackendController(config_of(trace), backend, device=gpu.device())
    compared = run_trace(controller, trace)
    assert compared == 5 * trace["T"] + len(trace["merges"][0]) * len(trace["merges"])
