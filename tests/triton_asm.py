"""What compiled Triton kernels do, read from the compiler's texts."""

from __future__ import annotations

import re
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

#: Parameters of the kernels that walk the tile table, by number.
BUFFERS = {2: "anchor", 3: "mid", 4: "scratch", 5: "state"}


@dataclass(frozen=True)
class Code:
    """One kernel for one architecture; ``sass`` may be empty."""

    ttir: str
    ptx: str
    sass: str
    usage: str

    @classmethod
    def read(cls, folder: Path, name: str) -> Code:
        stages = ("ttir", "ptx", "sass", "usage")
        return cls(*((folder / f"{name}.{stage}").read_text(encoding="utf-8") for stage in stages))

    @property
    def registers(self) -> int:
        return int(re.search(r" REG:(\d+)", self.usage)[1])

    @property
    def memory(self) -> int:
        """Bytes of memory that a thread keeps values in, and instructions that reach it."""
        stack = int(re.search(r" STACK:(\d+)", self.usage)[1])
        return stack + len(re.findall(r"\b(?:LDL|STL)\b", self.sass))


# ---- PTX ---------------------------------------------------------------------------------------

_REGISTER = re.compile(r"%[a-z]+\d+")
_PARAMETER = re.compile(r"\[\w+_param_(\d+)\]")


def definitions(ptx: str) -> dict[str, list[str]]:
    """The instructions that write each register."""
    found: dict[str, list[str]] = {}
    for line in ptx.splitlines():
        text = line.split("//")[0].strip()
        text = re.sub(r"^@!?%p\d+\s+", "", text)
        if not text.endswith(";") or text.startswith(("st.", "bra", "red.", "bar", ".")):
            continue
        operands = text.split(None, 1)[1] if " " in text or "\t" in text else ""
        for register in _REGISTER.findall(re.split(r"[\[,](?![^{]*\})", operands, maxsplit=1)[0]):
            found.setdefault(register, []).append(text)
    return found


def parameters(register: str, written: dict[str, list[str]]) -> set[int]:
    """Numbers of the kernel's parameters that the value of a register comes from."""
    seen: set[str] = set()
    waiting, found = [register], set()
    while waiting:
        each = waiting.pop()
        if each in seen:
            continue
        seen.add(each)
        for text in written.get(each, ()):
            found |= {int(number) for number in _PARAMETER.findall(text)}
            waiting += _REGISTER.findall(text)
    return found


def wide_accesses(ptx: str) -> Counter[tuple[str, str]]:
    """16-byte accesses to device memory in a kernel over tiles, by ``("ld" | "st", buffer)``."""
    written = definitions(ptx)
    found: Counter[tuple[str, str]] = Counter()
    for line in ptx.splitlines():
        match = re.search(r"\b(ld|st)\.global\S*\.(v4\.b32|v2\.b64)[^\[]*\[ ?(%rd\d+)", line)
        if match:
            sources = parameters(match[3], written)
            names = [name for number, name in BUFFERS.items() if number in sources]
            found[match[1], "+".join(names) or "live"] += 1
    return found


def after_release(ptx: str) -> list[list[str]]:
    """For each addition that releases to the system: the stores that follow up to the next jump."""
    found: list[list[str]] = []
    counts = False
    for line in ptx.splitlines():
        if ".sys.acq_rel" in line:
            counts = True
            found.append([])
        elif counts and re.search(r"\b(bra|ret|atom)\b", line):
            counts = False
        elif counts and (store := re.search(r"\bst\.global\S*", line)):
            found[-1].append(store[0])
    return found


# ---- TTIR --------------------------------------------------------------------------------------

_OP = re.compile(r"^\s*(%[\w-]+)(?::\d+)? = (\S+) (.*?)\s*(?:loc\(.*)?$")
_NAME = re.compile(r"%[\w-]+")
_FOR = re.compile(r"scf\.for (%[\w-]+) = .* : (\w+) \{")


Ops = dict[str, list[tuple[str, str]]]


def narrow_offsets(ttir: str) -> list[str]:
    """Address computations in 32 bits that the size of a table could make wrap around.

    A tensor's offsets may be 32 bits wide when they count the entries of a tile. A scalar that
    comes from a program's number, a loop or an argument must be 64 bits wide from the start.
    """
    ops: Ops = {}  # regions beside each other may use a name again: all its meanings count
    for match in filter(None, map(_OP.match, ttir.splitlines())):
        ops.setdefault(match[1], []).append((match[2], match[3]))
    loops = {name for name, kind in _FOR.findall(ttir) if kind == "i32"}
    wrong = []
    meanings = ((name, *each) for name, all_ in ops.items() for each in all_)
    for name, op, rest in meanings:
        operands = _NAME.findall(rest)
        if op == "tt.addptr" and "tensor" in rest:
            if "xi32>" in rest and not all(
                map(_is_within_a_tile, ops.get(operands[1], [("", "")]))
            ):
                wrong.append(f"{name} = {op} {rest}")
        elif op in ("tt.addptr", "tt.int_to_ptr"):
            wrong += [f"{name} depends on {each}" for each in _narrow(operands, ops, loops)]
    return wrong


def _is_within_a_tile(op: tuple[str, str]) -> bool:
    limits = re.search(r"end = (\d+) : i32, start = (\d+) : i32", op[1])
    return op[0] == "tt.make_range" and limits is not None and int(limits[1]) <= 4096


def _narrow(names: list[str], ops: Ops, loops: set[str]) -> list[str]:
    """32-bit arithmetic on a program's number, and 32-bit loop counters, behind ``names``."""
    seen: set[str] = set()
    waiting, found = list(names), []
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in loops:
            found.append(name)
        for op, rest in ops.get(name, ()):
            if op.startswith("arith."):
                operands = _NAME.findall(rest)
                counted = any(("tt.get_program_id", "x : i32") in ops.get(x, ()) for x in operands)
                if counted and op != "arith.extsi":
                    found.append(f"{name} = {op} {rest}")
                waiting += operands
    return found


def real_constants(ttir: str) -> set[float]:
    """Values of the fp64 constants."""
    found = set()
    for text in re.findall(r"arith\.constant (?:dense<)?([-+.\w]+)>? : (?:tensor<\w+x)?f64", ttir):
        bits = int(text, 16).to_bytes(8, "big") if text.startswith("0x") else None
        found.add(struct.unpack(">d", bits)[0] if bits else float(text))
    return found
