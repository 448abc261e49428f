"""Storage is read and rounded as torch does it, and as rounding in exact arithmetic says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from aimmerge_fast import kernels
from aimmerge_fast.config import AIMConfig
from aimmerge_fast.kernels import layout
from tests.backends import USABLE
from tests.oracles import FORMATS, fused, rounded, same_values, stored
from tests.tables import DTYPES, Play, Spec, Table, integers

pytestmark = [pytest.mark.parametrize("backend", USABLE), pytest.mark.usefixtures("one_thread")]
HALF = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", HALF)
def test_every_16_bit_pattern_is_read_as_torch_reads_it(backend: str, dtype: torch.dtype) -> None:
    patterns = stored(np.arange(1 << 16), dtype)
    if backend == "eager":  # torch itself converts
        patterns = patterns[::61]
    state = kernels.new_state(AIMConfig(schedule="single"))
    got = np.empty(len(patterns))
    for index, loss in enumerate(patterns):
        kernels.observe_(loss, state, backend=backend)
        got[index] = kernels.ring(state)[index % layout.RING_SIZE]["loss"]
    assert same_values(got, patterns.double().numpy())


@pytest.mark.parametrize("dtype", HALF)
def test_results_are_rounded_to_nearest_even(backend: str, dtype: torch.dtype) -> None:
    """Around every value of the format: the tie to its neighbour, just beside it, and others."""
    mid = stored(np.arange(1 << 16), dtype)
    magnitude = np.arange(1 << 16) & 0x7FFF
    towards_zero = stored(np.arange(1 << 16) - (magnitude > 0), dtype)
    table = Table.build([Spec(dtype, 1 << 16)], AIMConfig(), defer=True)
    (live,), engine = table.live, table.engine(backend)
    beside = 2.0 ** (FORMATS[dtype][0] - 24)  # one step of fp32
    ties = [side * (0.5 + k * beside) for side in (-1, 1) for k in (-1, 0, 1)]
    for alpha2 in (*ties, 0.25, -0.75, beside, -beside, 3.0, -1e5):
        table.anchor.zero_()
        kernels.copy_into(table.mid, [mid])
        live.copy_(towards_zero)
        table.fields["alpha1"], table.fields["alpha2"] = 1.0, alpha2
        engine.close_()
        with np.errstate(all="ignore"):
            m, x = mid.float().numpy(), towards_zero.float().numpy()
            value = fused(np.zeros_like(m), m, x, 1.0, alpha2)
            expected = rounded(value.astype(np.float64), dtype)
        assert same_values(live.double().numpy(), expected)
        assert same_values(expected, torch.from_numpy(value).to(dtype).double().numpy())
        assert table.fields["partial_bad"] == (~np.isfinite(expected)).sum()


@pytest.mark.parametrize("dtype", DTYPES)
def test_alpha_1_0_stores_mid_bit_for_bit(backend: str, dtype: torch.dtype) -> None:
    play = Play([Spec(dtype, 5000)], "bits", 1, AIMConfig(alpha_new=1.0))
    anchor, mid, _ = play.bits[0]
    table = Table.build(play.specs, play.config)
    play.fill(table, 0)
    kernels.copy_into(table.anchor, table.live)
    play.fill(table, 1)
    table.engine(backend).open_()
    table.live[0].fill_(math.nan)  # what the memory steps did is not looked at
    table.engine(backend).close_()
    assert table.fields["reject"] == 0
    assert torch.equal(integers(table.live[0]), integers(stored(mid, dtype)))
    with np.errstate(all="ignore"):  # the formula alone would give other bits
        a, m = (stored(bits, dtype).float().numpy() for bits in (anchor, mid))
        assert (rounded((a + (m - a)).astype(np.float64), dtype) != m).any()
