"""Tables of live tensors with known bits and fences, and one merge played on a backend.

What is compared is every byte that a backend may touch: the live tensors, the bytes around them,
both arenas with the gaps between their tensors, and the state with its ring.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st

from aimmerge_fast import kernels
from aimmerge_fast.config import AIMConfig
from aimmerge_fast.kernels import layout

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: A tile is 4,096 entries; a CPU row is 1,024 and the widest vector holds 32.
SIZES = (0, 1, 2, 3, 7, 15, 31, 33, 63, 65, 1023, 1025, 4095, 4096, 4097, 5000, 8191, 8192, 8193)
KINDS = ("normal", "position", "bits", "specials", "tiny")
FENCE, FENCE_BYTES = 0xA5, 64
_INFINITY = {torch.float32: 0x7F800000, torch.bfloat16: 0x7F80, torch.float16: 0x7C00}


def examples(ci: int) -> settings:
    """Settings for ``ci`` examples; the nightly profile multiplies them by 20."""
    return settings(max_examples=ci * settings.default.max_examples // 100)


@dataclasses.dataclass(frozen=True)
class Spec:
    """One live tensor: it starts ``offset`` entries after an address that is aligned to 64."""

    dtype: torch.dtype
    entries: int
    offset: int = 0


def specs(sizes: Sequence[int] = SIZES, longest: int = 5) -> st.SearchStrategy[list[Spec]]:
    entries = st.one_of(st.sampled_from(sizes), st.integers(0, 5_000))
    one = st.builds(Spec, st.sampled_from(DTYPES), entries, st.integers(0, 15))
    return st.lists(one, max_size=longest)


# ---- bits ---------------------------------------------------------------------------------------


def integers(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as integers of its width."""
    return tensor.view(torch.int32 if tensor.element_size() == 4 else torch.int16)


def set_bits(tensor: torch.Tensor, bits: np.ndarray[Any, Any]) -> None:
    signed = np.int32 if tensor.element_size() == 4 else np.int16
    unsigned = np.uint32 if tensor.element_size() == 4 else np.uint16
    array = np.ascontiguousarray(bits.astype(unsigned)).view(signed)
    integers(tensor).copy_(torch.from_numpy(array))


def bits_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).cpu().numpy().tobytes()


def bits_like(values: np.ndarray[Any, Any], dtype: torch.dtype) -> np.ndarray[Any, Any]:
    rounded = torch.from_numpy(values.astype(np.float32)).to(dtype)
    width = np.uint32 if dtype == torch.float32 else np.uint16
    return integers(rounded).numpy().view(width)


def special_bits(dtype: torch.dtype) -> list[int]:
    """Finite edges: zeros, subnormals, least normal, one, largest, and the fp16 border in fp32."""
    infinity = _INFINITY[dtype]
    step = infinity & -infinity  # of the exponent
    edges = [0, 1, 2, step - 1, step, step + 1, infinity - 1, infinity - 2, infinity // 2]
    if dtype == torch.float32:
        edges += [int(np.float32(x).view(np.uint32)) for x in (1.0, 65504.0, 65519.0, 65520.0)]
    sign = (infinity | infinity - 1) + 1
    return [*edges, *(edge | sign for edge in edges)]


def bad_bits(dtype: torch.dtype) -> list[int]:
    """Infinities and NaNs: quiet and signalling, with payloads, of both signs."""
    infinity = _INFINITY[dtype]
    sign = (infinity | infinity - 1) + 1
    quiet = (infinity & -infinity) >> 1
    found = [infinity, infinity | 1, infinity | quiet, infinity | quiet | 5, infinity | quiet - 1]
    return [*found, *(bits | sign for bits in found)]


@functools.cache
def _pool() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Normal numbers and random words to take slices of: drawing them anew would take longer."""
    rng = np.random.default_rng(0)
    return rng.standard_normal(1 << 18, np.float32), rng.integers(0, 1 << 32, 1 << 18, np.uint32)


def _slices(pool: np.ndarray[Any, Any], n: int, seed: int) -> list[np.ndarray[Any, Any]]:
    starts = np.random.default_rng(seed).integers(0, len(pool) - n, 3)
    return [pool[start : start + n] for start in starts]


def stages(kind: str, spec: Spec, seed: int, first: int) -> list[np.ndarray[Any, Any]]:
    """Bits of the anchor, of theta_j, and of theta_M; ``first`` is the tensor's global index."""
    n, dtype, infinity = spec.entries, spec.dtype, _INFINITY[spec.dtype]
    if kind == "normal":
        a, b, c = _slices(_pool()[0], n, seed)
        values = (a * np.float32(0.02), (a + b) * np.float32(0.02), (a + b + c) * np.float32(0.02))
        return [bits_like(value, dtype) for value in values]
    if kind == "position":  # permuted chunks would show
        index = np.arange(first, first + n)
        if dtype == torch.float32:
            return [bits_like(index + shift, dtype) for shift in (0, 1, 3)]
        return [(index + shift) % infinity for shift in (0, 1, 3)]
    words = _slices(_pool()[1], n, seed)
    if kind == "specials":
        specials = np.asarray(special_bits(dtype), np.uint32)
        return [specials[word % len(specials)] for word in words]
    sign, step = (infinity | infinity - 1) + 1, infinity & -infinity
    # subnormals; or up to a sixteenth of the largest, so that no sum of a few overflows
    largest = step if kind == "tiny" else infinity - 4 * step
    return [word % largest | word & sign for word in words]


# ---- one merge ----------------------------------------------------------------------------------


@dataclasses.dataclass
class Table:
    """Live tensors inside fenced buffers, their arenas, and a controller."""

    buffers: list[torch.Tensor]
    live: list[torch.Tensor]
    anchor: torch.Tensor
    mid: torch.Tensor
    state: torch.Tensor

    @classmethod
    def build(
        cls,
        specs: Sequence[Spec],
        config: AIMConfig,
        *,
        defer: bool = False,
        device: torch.device | str = "cpu",
    ) -> Table:
        buffers, live = [], []
        for spec in specs:
            start = FENCE_BYTES + spec.offset * spec.dtype.itemsize
            end = start + spec.entries * spec.dtype.itemsize
            size = end + FENCE_BYTES
            buffers.append(torch.full((size,), FENCE, dtype=torch.uint8, device=device))
            live.append(buffers[-1][start:end].view(spec.dtype))
        arenas = [kernels.new_arena(live).fill_(FENCE).to(device) for _ in range(2)]
        return cls(buffers, live, *arenas, kernels.new_state(config, defer=defer, device=device))

    @property
    def fields(self) -> Any:
        return kernels.read_state(self.state)["state"]

    def engine(self, backend: str) -> kernels.Engine:
        return kernels.engine(backend, self.live, self.anchor, self.mid, self.state)

    def snapshot(self) -> list[bytes]:
        """Every byte that a kernel could have written; the ring's address is left out."""
        state = kernels.save_state(self.state)
        layout.block(state)["state"]["ring"] = 0
        return [bits_of(each) for each in (*self.buffers, self.anchor, self.mid, state)]


@dataclasses.dataclass(frozen=True)
class Play:
    """A merge: tensors, what they hold at each stage, and where non-finite entries are planted.

    ``bad`` maps a stage (1: theta_j, 2: theta_M) to (tensor, entry, bits).
    """

    specs: Sequence[Spec]
    kind: str = "normal"
    seed: int = 0
    config: AIMConfig = dataclasses.field(default_factory=AIMConfig)
    losses: Sequence[float] = (1.0, 9.0)
    bad: dict[int, Sequence[tuple[int, int, int]]] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def bits(self) -> list[list[np.ndarray[Any, Any]]]:
        """For each tensor its bits at each stage."""
        found, first = [], 0
        for index, spec in enumerate(self.specs):
            found.append([b.copy() for b in stages(self.kind, spec, self.seed + index, first)])
            first += spec.entries
        for stage, places in self.bad.items():
            for tensor, entry, pattern in places:
                found[tensor][stage][entry] = pattern
        return found

    def fill(self, table: Table, stage: int) -> None:
        for tensor, bits in zip(table.live, self.bits, strict=True):
            set_bits(tensor, bits[stage])

    def on(
        self, backend: str, table: Table | None = None, engine: kernels.Engine | None = None
    ) -> list[list[bytes]]:
        """Play it, on the table's ``engine`` if it has one; snapshots after open and close."""
        table = table or Table.build(self.specs, self.config)
        self.fill(table, 0)
        kernels.copy_into(table.anchor, table.live)
        engine = engine or table.engine(backend)
        for loss in self.losses:
            engine.observe_(torch.tensor(loss, dtype=torch.float64, device=table.state.device))
        return [self._half(table, stage, engine) for stage in (1, 2)]

    def _half(self, table: Table, stage: int, engine: kernels.Engine) -> list[bytes]:
        if not table.fields["reject"]:  # a rejected open leaves live at the anchor
            self.fill(table, stage)
        half: Callable[[], None] = engine.open_ if stage == 1 else engine.close_
        half()
        return table.snapshot()
