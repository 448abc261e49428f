"""A compiled step equals the uncompiled one bit for bit: what ``opcheck`` alone does not prove.

Two planted ops show why. Both pass ``opcheck``; one hides what it writes, the other works on the
tensors it was made for instead of those it is given, and the comparisons here see both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from aimmerge_fast import kernels
from aimmerge_fast.config import AIMConfig
from aimmerge_fast.kernels import library, native
from tests import compilers
from tests.backends import USABLE
from tests.tables import Play, Spec, Table, bits_of

Tensor = torch.Tensor
Step = Callable[..., list[Tensor]]
SPECS = [Spec(torch.float32, 7), Spec(torch.bfloat16, 0), Spec(torch.float16, 33)]
INNER = [Spec(torch.float32, 4097), Spec(torch.bfloat16, 5)]
NAN = 0x7FC00000
OUTCOMES: dict[str, dict[int, list[tuple[int, int, int]]]] = {
    "merged": {},
    "rejected open": {1: [(0, 6, NAN)]},
    "rejected close": {2: [(0, 6, NAN)]},
}
CONFIG = AIMConfig(s_init=2, alpha_new=0.25)


@pytest.fixture(autouse=True)
def fresh_compilers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    with compilers.fresh(monkeypatch, tmp_path):
        yield


# ---- a step -------------------------------------------------------------------------------------


def step(loss: Tensor, outer: list[Any], inner: list[Any], backend: str) -> list[Tensor]:
    """Observe, open, train, close; live is read before and after each.

    ``outer`` and ``inner`` are [live, theta_j, theta_M, anchor, mid, state]; the live tensors of
    ``outer`` are the caller's, those of ``inner`` are made here from the caller's.
    """
    tables = [outer, [[tensor * 1 for tensor in inner[0]], *inner[1:]]]
    reads: list[Tensor] = []
    for *_, state in tables:
        kernels.observe_(loss, state, backend=backend)
    for target, op in ((1, kernels.open_), (2, kernels.close_)):
        for table in tables:
            for tensor, value in zip(table[0], table[target], strict=True):
                tensor.copy_(value)
            reads += [tensor * 2 for tensor in table[0]]
        for live, _, _, *buffers in tables:
            op(live, *buffers, backend=backend)
        for live, _, _, anchor, mid, _ in tables:
            reads += [*(tensor * 2 for tensor in live), anchor + 1, mid + 1]
    for live, *_ in tables:
        reads += live
    return reads


@dataclasses.dataclass
class Given:
    """Two tables at the start of a step, and what their live tensors become in it."""

    plays: list[Play]
    tables: list[Table]

    @classmethod
    def build(cls, outcome: str) -> Given:
        plays = [
            Play(specs, "normal", 3, CONFIG, bad=OUTCOMES[outcome]) for specs in (SPECS, INNER)
        ]
        given = cls(plays, [Table.build(play.specs, CONFIG) for play in plays])
        for play, table in zip(plays, given.tables, strict=True):
            play.fill(table, 0)
            kernels.copy_into(table.anchor, table.live)
            table.live = [tensor.clone() for tensor in table.live]  # a compiler's aliasing rules
        return given

    def arguments(self) -> list[list[Any]]:
        found = []
        for play, table in zip(self.plays, self.tables, strict=True):
            stages = [Table.build(play.specs, CONFIG) for _ in (1, 2)]
            for stage, other in enumerate(stages, 1):
                play.fill(other, stage)
            values = [[t.clone() for t in other.live] for other in stages]
            found.append([table.live, *values, table.anchor, table.mid, table.state])
        return found

    def bytes(self, reads: Sequence[Tensor]) -> list[bytes]:
        """Everything that was read or written, states and rings included."""
        tables = [part for table in self.tables for part in table.snapshot()]
        live = [bits_of(tensor) for table in self.tables for tensor in table.live]
        return [bits_of(tensor) for tensor in reads] + live + tables


def played(function: Step, outcome: str, backend: str, steps: int = 3) -> list[list[bytes]]:
    """The bytes after each of a few steps on the same tables."""
    given, found = Given.build(outcome), []
    for number in range(steps):
        loss = torch.tensor(1.0 + number, dtype=torch.float64)
        found.append(given.bytes(function(loss, *given.arguments(), backend)))
    return found


@pytest.mark.parametrize(
    ("compiler", "backend"),
    [*(("aot_eager", name) for name in USABLE), ("eager", "native"), ("inductor", "native")],
)
def test_a_compiled_step_equals_the_uncompiled(compiler: str, backend: str) -> None:
    made = compilers.compiled(step, compiler)
    seen = set()
    for outcome in OUTCOMES:
        expected = played(step, outcome, backend)
        for number, (wanted, got) in enumerate(
            zip(expected, played(made, outcome, backend), strict=True)
        ):
            different = [i for i, (a, b) in enumerate(zip(wanted, got, strict=True)) if a != b]
            assert not different, f"{outcome}, step {number}: parts {different}"
        seen.add(tuple(expected[0]))
    assert len(seen) == len(OUTCOMES), "the outcomes must differ"


def test_a_compiler_hands_over_other_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The premise of the test above; each op runs once, so each record is posted once."""
    ran: list[str] = []
    given_over: set[int] = set()

    def spy(name: str) -> None:
        op = getattr(native, name)

        def noting(*tensors: Any) -> None:
            ran.append(name)
            given_over.update(t.data_ptr() for t in torch.utils._pytree.tree_leaves(tensors))
            op(*tensors)

        monkeypatch.setattr(native, name, noting)

    for name in ("observe_", "open_", "close_"):
        spy(name)
    given = Given.build("merged")
    arguments = given.arguments()
    compilers.compiled(step, "aot_eager")(torch.tensor(1.0), *arguments, "native")
    assert ran == ["observe_"] * 2 + ["open_"] * 2 + ["close_"] * 2
    buffers = [buffer for *_, anchor, mid, state in arguments for buffer in (anchor, mid, state)]
    assert not {buffer.data_ptr() for buffer in buffers} <= given_over
    for table in given.tables:
        numbers = kernels.ring(table.state)["sequence"]
        assert list(numbers[:4]) == [1, 2, 3, 0]


def test_a_call_that_is_refused_is_refused_by_name_when_compiled() -> None:
    live, state = [torch.zeros(4, dtype=torch.float64)], kernels.new_state(AIMConfig())
    close = compilers.compiled(kernels.close_, "aot_eager")
    with pytest.raises(RuntimeError, match=r"live\[0\] is torch.float64; the kernels take float32"):
        close(live, torch.zeros(64, dtype=torch.uint8), torch.zeros(64, dtype=torch.uint8), state)


# ---- planted ops --------------------------------------------------------------------------------


@pytest.fixture
def planted() -> Iterator[tuple[Table, torch.library.Library]]:
    """Ops that reach the live tensors of one table by what they keep, not by what they are given.

    ``hidden_``: the schema does not name the live tensors. ``baked_``: it does, but the engine was
    bound before.
    """
    table = Table.build([Spec(torch.float32, 7)], CONFIG)
    table.live = [tensor.clone() for tensor in table.live]
    kernels.abandon_merge(table.state)  # so that every call stores the same: mid
    engine = table.engine("native")
    made = torch.library.Library("aimmerge_planted", "FRAGMENT")
    made.define("hidden_(Tensor(a!) anchor, Tensor mid, Tensor(b!) state) -> ()")
    made.define("baked_" + library.SCHEMAS["close_"])
    for name in ("hidden_", "baked_"):
        made.impl(name, lambda *_, **__: engine.close_(), "CompositeExplicitAutograd")
        torch.library.register_fake(f"aimmerge_planted::{name}", lambda *_, **__: None, lib=made)
    yield table, made
    made._destroy()


def close_hidden(live: list[Tensor], anchor: Tensor, mid: Tensor, state: Tensor) -> list[Tensor]:
    before = [tensor * 2 for tensor in live]
    torch.ops.aimmerge_planted.hidden_(anchor, mid, state)
    return [*before, *(tensor * 2 for tensor in live)]


def close_baked(live: list[Tensor], anchor: Tensor, mid: Tensor, state: Tensor) -> list[Tensor]:
    torch.ops.aimmerge_planted.baked_(live, anchor, mid, state)
    return live


@pytest.mark.parametrize(
    ("op", "function", "compiler"),
    [("hidden_", close_hidden, "inductor"), ("baked_", close_baked, "aot_eager")],
)
def test_a_wrong_op_passes_opcheck_and_is_seen_here(
    planted: tuple[Table, Any], op: str, function: Step, compiler: str
) -> None:
    table, _ = planted
    buffers = (table.anchor, table.mid, table.state)
    arguments = buffers if op == "hidden_" else (table.live, *buffers)
    overload = getattr(torch.ops.aimmerge_planted, op).default
    assert set(torch.library.opcheck(overload, arguments).values()) == {"SUCCESS"}

    def run(called: Step) -> list[bytes]:
        for arena, value in ((table.anchor, 1.0), (table.mid, 3.0)):
            kernels.copy_into(arena, [torch.full((7,), value)])
        table.live[0].fill_(2.0)
        return [bits_of(tensor) for tensor in called(table.live, *buffers)]

    assert run(compilers.compiled(function, compiler)) != run(function)
