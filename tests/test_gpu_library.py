"""``opcheck`` of every op on a GPU, for each backend that runs there."""

from __future__ import annotations

import pytest

from tests import gpu, op_cases
from tests.op_cases import CASES, Case

pytestmark = [gpu.REQUIRED, pytest.mark.parametrize("backend", gpu.BACKENDS)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_opcheck(backend: str, case: Case) -> None:
    op_cases.opcheck(case, backend, str(gpu.device()))
