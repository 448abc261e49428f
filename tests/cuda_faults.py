"""Faults to plant in a copy of ``csrc/cuda``, and what must see each of them.

A fault replaces text; that the text is still there is checked, so whoever changes a kernel takes
its faults along.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tests.emulated import ROOT

CUDA = ROOT / "csrc/cuda"
RACE = "ThreadSanitizer: (data race|SEGV)"  # of a pointer that was not there yet
OVERFLOW = "heap-buffer-overflow"
BARRIER = "__syncthreads();"


@dataclasses.dataclass(frozen=True)
class Fault:
    """Text to replace in one file: (old, new) or (old, new, which of them, from 0).

    ``cases`` of the program ``races`` or ``bounds``, with ``ops`` compiled anew, must fail and
    print ``seen``, a regular expression.
    """

    name: str
    file: str
    edits: tuple[tuple[str, str] | tuple[str, str, int], ...]
    program: str
    seen: str
    ops: tuple[str, ...] = ("open", "close")
    cases: tuple[str, ...] = ("merges",)
    in_ci: bool = False

    def plant(self, folder: Path) -> None:
        """Write the changed file into ``folder/cuda``."""
        text = (CUDA / self.file).read_text()
        for old, new, *which in self.edits:
            parts, k = text.split(old), 1 + (which[0] if which else 0)
            assert len(parts) > k, f"{self.name}: {self.file} has no {old!r}"
            text = old.join(parts[:k]) + new + old.join(parts[k:])
        target = folder / "cuda" / self.file
        target.parent.mkdir(parents=True)
        target.write_text(text)


def missing_barriers() -> list[Fault]:
    """Each barrier of the kernels, taken out."""
    found = []
    for path in sorted(CUDA.glob("*.cu*")):
        shared = path.suffix == ".cuh"
        ops = ("open", "close") if shared else (path.stem,)
        cases = ("observe",) if path.stem == "observe" else ("deferred", "reject_close")
        for k in range(path.read_text().count(BARRIER)):
            name, edit = f"barrier {k + 1} of {path.name} is missing", (BARRIER, "", k)
            found.append(Fault(name, path.name, (edit,), "races", RACE, ops, cases, shared))
    return found


def weak_tickets() -> list[Fault]:
    old = "return emulation::ticket_add(ticket);"
    return [
        Fault(
            f"the ticket is {order.lower()}",
            "device.cuh",
            ((old, f"return __atomic_fetch_add(ticket, 1u, __ATOMIC_{order});"),),
            "races",
            RACE,
            ("open",),
            in_ci=order == "RELAXED",
        )
        for order in ("RELAXED", "RELEASE", "ACQUIRE")
    ]


def tails() -> list[Fault]:
    """The guards of ``entries.cuh``: dropped, one too far, one short."""
    found = []
    for action, old, case in (
        ("load", "if (index(row, i) < count) put(", "merges"),
        ("store", "if (index(row, i) < count) entries[", "merges"),
        ("copy", "i < tile.count; i += kThreads", "reject_open"),
    ):
        changes = {
            "one long": (old.replace("<", "<="), OVERFLOW),
            "one short": (old.replace("count", "count - 1"), "differs after open"),
        }
        if action != "copy":  # which without its end would never end
            changes["not guarded"] = (old.split(") ")[-1], OVERFLOW)
        for how, (new, seen) in changes.items():
            in_ci = (action, how) in (("load", "one long"), ("store", "one short"))
            edit = ((old, new),)
            name = f"the {action} of a tail is {how}"
            ops = ("open",)
            found.append(
                Fault(name, "entries.cuh", edit, "bounds", seen, ops, (case,), in_ci=in_ci)
            )
    return found


def _wrong(
    name: str, file: str, old: str, new: str, seen: str, case: str = "merges", ci: bool = False
) -> Fault:
    ops = ("open", "close", "repair") if file.endswith(".cuh") else (Path(file).stem,)
    return Fault(name, file, ((old, new),), "bounds", seen, ops, (case,), ci)


FLAT = "heap-buffer-overflow|misaligned address"
SHUFFLE = "for (int lane = 1; lane < 32; lane *= 2)"
DEALT = "kOwn * static_cast<int>(threadIdx.x) + i"
ROWS = "(d[0] + d[2]) + (d[1] + d[3])"
WORDS = "i < sizeof(T) / 8;"
WIDE, WIDE_OLD = "true", "tile.flags & kWide"
LAST, FIRST_TILE = "gridDim.x - 1", "k < table.count; k += step"
ATOMIC = "atomicAdd(total, static_cast<unsigned long long>(bad));"
EARLY = """  const double early = final_sum<kThreads>(table);
  __syncthreads();
  if (finishes_last(table.scratch)) finish<kThreads>(table, early);"""

FAULTS = [
    *missing_barriers(),
    *weak_tickets(),
    *tails(),
    Fault(
        "bad entries are added without an atomic",
        "entries.cuh",
        ((ATOMIC, "*total += bad;"),),
        "races",
        RACE,
        cases=("reject_open",),
    ),
    Fault(
        "the tiles' sums are read before the ticket",
        "open.cu",
        (
            ("  if (finishes_last(table.scratch)) finish<kThreads>(table);", EARLY),
            ("finish(const Table& table) {", "finish(const Table& table, double l1) {"),
            ("  const double l1 = final_sum<kThreads>(table);", "  __syncthreads();"),
        ),
        "races",
        RACE,
        ops=("open",),
    ),
    _wrong(
        *("the ticket is not put back", "device.cuh", "  scratch->ticket = 0;\n", ""),
        *("the ticket differs after open", "merges", True),
    ),
    _wrong(
        *("the count is not put back", "device.cuh", "  scratch->bad = 0;\n", ""),
        *("bad count differs after open", "reject_open"),
    ),
    _wrong("the last but one finishes", "device.cuh", LAST, "gridDim.x - 2", "after open"),
    _wrong("open takes a tail for a full tile", "open.cu", WIDE_OLD, WIDE, FLAT),
    _wrong("close takes a tail for a full tile", "close.cu", WIDE_OLD, WIDE, FLAT),
    _wrong(
        "a copy takes a tail for a full tile",
        "entries.cuh",
        f"!({WIDE_OLD})",
        "!true",
        FLAT,
        "reject_open",
    ),
    _wrong(
        *("half of a warp is added", "device.cuh", SHUFFLE, SHUFFLE.replace("32", "16")),
        "state differs after open",
    ),
    _wrong(
        *("a warp is added in another order", "device.cuh", SHUFFLE),
        *("for (int lane = 16; lane >= 1; lane /= 2)", "state differs after open", "ordered"),
    ),
    _wrong(
        *("rows are added in another order", "open.cu", ROWS, "(d[0] + d[1]) + (d[2] + d[3])"),
        *("state differs after open", "ordered"),
    ),
    _wrong(
        *("lanes are dealt in another order", "device.cuh", DEALT),
        *("static_cast<int>(threadIdx.x) + kThreads * i", "state differs after open", "many"),
    ),
    _wrong(
        "the last word of the state stays", "device.cuh", WORDS, "i < sizeof(T) / 8 - 1;", "state"
    ),
    _wrong(
        *("open does not restore", "open.cu", "undo<kThreads>(table, kMergeOpen, 0, 1);", ";"),
        *("live tensor 0 differs after open", "reject_open"),
    ),
    _wrong(
        *("close does not restore", "close.cu", "undo<kThreads>(table, kIdle, 0, 1);", ";"),
        *("live tensor 0 differs after close", "reject_close"),
    ),
    _wrong(
        *("the halves are undone the wrong way", "entries.cuh", "phase == kMerge"),
        *("phase != kMerge", "differs after open", "reject_open"),
    ),
    _wrong(
        *("only one tile is undone", "entries.cuh", FIRST_TILE, "k < 1; k += step"),
        *("live tensor 0 differs after open", "reject_open"),
    ),
    _wrong(
        *("alpha (1, 0) is computed", "close.cu", "weights.alpha1 == 1.0f", "false"),
        *("differs after close", "unit"),
    ),
    _wrong(
        *("monitoring takes a bad snapshot over", "close.cu", "else if (!state.reject)", "else"),
        *("anchor differs after close", "monitor"),
    ),
]
