"""Block ``training``: what a training step costs, a table per device, a column per backbone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu.train import MATCHED, SHARES
from overhead.backbones import BACKBONES
from readme import records
from readme.words import (
    CPU,
    GPU,
    NOT_RUN,
    count,
    figure,
    one_line,
    origin,
    percent,
    table,
    together,
    two_digits,
)
from training.phases import NAMES as PHASES
from training.results import TABLE6
from training.settings import Settings

Case = dict[str, Any]
Cell = Callable[[Case], str]


#: Of a GPU: the file, and what is said where it is not there.
ON_GPU = {
    "gpu_training_overhead.json": "GPU: not run on a GPU.",
    "gpu_training_overhead_graphs.json": "GPU, passes as CUDA graphs: not run on a GPU.",
}


def block(folder: Path) -> list[str]:
    lines = records.lines(folder, "training_overhead_cpu.json", lambda record: device(record, CPU))
    for name, absent in ON_GPU.items():
        made = records.lines(folder, name, lambda record: device(record, GPU), absent=absent)
        lines = [*lines, "", *made]
    return lines


def device(record: dict[str, Any], kind: str) -> list[str]:
    """Caption, a column for each backbone that was finished, targets and what the bench notes."""
    known = record["backbones"]
    if unknown := set(known) - set(BACKBONES):
        raise ValueError(f"unknown backbones {', '.join(sorted(unknown))}")
    cases = {
        BACKBONES[name].title: known[name]["summary"]
        for name in BACKBONES
        if "summary" in known.get(name, {})
    }
    absent = [what.title for name, what in BACKBONES.items() if what.title not in cases]
    lines = [_caption(record, cases, kind)]
    if cases:
        head = ["", *(f"{title}, {_layers(case)}" for title, case in cases.items())]
        rows = [[title, *map(cell, cases.values())] for title, cell in ROWS.items()]
        rows = [row for row in rows if {*row[1:]} != {NOT_RUN}]
        lines += ["", *table(head, rows), "", f"{_targets(cases)} {_noted(cases)}".strip()]
    if absent:
        lines += ["", f"Not run here: {', '.join(absent)}."]
    return lines


def _caption(record: dict[str, Any], cases: dict[str, Case], kind: str) -> str:
    parts = [origin(record, kind)]
    parts += [together({title: _sizes(case) for title, case in cases.items()})] if cases else []
    parts += [together({title: _always(case) for title, case in cases.items()})] if cases else []
    return "; ".join(parts) + "."


def _sizes(case: Case) -> str:
    used = Settings(**case["settings"])
    return (
        f"base in {used.dtype}, {used.batch} × {used.seq} tokens, a merge every {used.interval} "
        f"steps, median of {case['repeats']} repeats of {used.steps} steps"
    )


def _layers(case: Case) -> str:
    layers, whole = case["layers"], case["of_layers"]
    return "all layers" if layers == whole else f"{layers} of {whole} layers"


def _seconds(*arms: str) -> Cell:
    """Medians; those after the first in brackets."""

    def cell(case: Case) -> str:
        first, *others = (_duration(case["seconds"].get(arm)) for arm in arms)
        return f"{first} ({', '.join(others)})" if others else first

    return cell


def _duration(spread: list[float] | None) -> str:
    if spread is None:
        return NOT_RUN
    return f"{figure(spread[1])} s" if spread[1] >= 1 else f"{figure(1e3 * spread[1])} ms"


def _ratio(arm: str) -> Cell:
    def cell(case: Case) -> str:
        if arm not in case["ratios"]:
            return NOT_RUN
        least, median, most = case["ratios"][arm]
        return f"{median:.2f} ({least:.2f}-{most:.2f})"

    return cell


def _passes(case: Case) -> str:
    """The three ratios if only passes through the model cost time, a backward as a forward."""
    used, rows = Settings(**case["settings"]), case["rows"]["aim"]
    plain = 2 * used.batch
    aim = plain + rows["history"] + 2 * rows["memory"]
    below = (plain, plain * used.mixed_stretch, plain + 2 * case["rows"]["matched"]["memory"])
    return ", ".join(f"{aim / each:.2f}" for each in below)


def _rows(case: Case) -> str:
    used, rows = Settings(**case["settings"]), case["rows"]
    mixed = used.batch * (used.mixed_stretch - 1)
    aim = f"{count(rows['aim']['history'])} + {count(rows['aim']['memory'])}"
    return f"{aim}; {count(mixed)}; {count(rows['matched']['memory'])}"


def _syncs(case: Case) -> str:
    counted = case["syncs_per_step"]
    names = (f"aim-{case['settings']['probe']}", "released", "released-lean")
    return "; ".join(figure(counted[n]["method"]) if n in counted else NOT_RUN for n in names)


def _waits(case: Case) -> str:
    waits = case["waits_per_1000"]
    over = f"{figure(waits['before'])}; {figure(waits['after'])} (in {waits['steps']:,} steps)"
    return f"{over}; {figure(waits['timed'])}"


def _share(case: Case) -> str:
    return percent(case["engine_share"])


def _phases(case: Case) -> str:
    """Of AIM, ms per step: host, and on a GPU the stream's time behind it."""
    found = [one["phases"] for one in case.get("phases", []) if one["arm"] == "aim"]
    if not found:
        return NOT_RUN
    return "; ".join(_phase(found[0][name]) for name in PHASES)


def _phase(taken: dict[str, float | None]) -> str:
    host, device = taken["host"], taken["device"]
    behind = "" if device is None else f" ({figure(1e3 * device)})"
    return f"{figure(1e3 * (host or 0.0))}{behind}"


def _paper(case: Case) -> str:
    return "no row" if case["table6"] is None else f"{case['table6']:.2f}"


ROWS: dict[str, Cell] = {
    "plain LoRA": _seconds("plain"),
    "LoRAReplay, 2 % mixed in": _seconds("replay"),
    "LoRAReplay, matched rows": _seconds("matched"),
    "AIM, `FastAIMMerger`": _seconds("aim"),
    "AIM as the released code does it (without its dead work)": _seconds(
        "released", "released-lean"
    ),
    "**AIM ÷ plain** (min-max)": _ratio("plain"),
    "**AIM ÷ LoRAReplay, 2 %** (min-max)": _ratio("replay"),
    "the same in the paper's Table 6 (8 V100)": _paper,
    "**AIM ÷ LoRAReplay, matched** (min-max)": _ratio("matched"),
    "the three ratios, counting passes alone": _passes,
    "rows a step: AIM's history + memory; 2 %; matched": _rows,
    "synchronising calls a step: AIM; released; without its dead work": _syncs,
    "waits per 1,000 steps: probe `before`; `after`; when timed": _waits,
    "engine's share of AIM's step": _share,
    f"AIM's ms a step: {'; '.join(PHASES)}": _phases,
}


def _targets(cases: dict[str, Case]) -> str:
    missed = [f"{title} {what}" for title, case in cases.items() for what in _missed(case)]
    shares = sorted({SHARES[case["backbone"]] for case in cases.values()})
    engine = " or ".join(f"{two_digits(100 * share)} %" for share in shares)
    verdict = f"Missed: {'; '.join(missed)}" if missed else "All met"
    return (
        f"Targets: the 2 % ratio at most Table 6's, the matched one at most {MATCHED}, no "
        f"synchronising call, no wait at `before`, an engine below {engine}. **{verdict}.**"
    )


def _missed(case: Case) -> list[str]:
    limits = {"replay": ("2 % ratio", _limit(case)), "matched": ("matched ratio", MATCHED)}
    missed = []
    for arm, (title, limit) in limits.items():
        median = case["ratios"][arm][1] if arm in case["ratios"] else None
        if median is None or (limit is not None and median > limit):
            missed.append(f"{title} {NOT_RUN if median is None else f'{median:.3f}'}")
    calls = case["syncs_per_step"][f"aim-{case['settings']['probe']}"]["method"]
    if calls:
        missed.append(f"{figure(calls)} synchronising calls")
    if waits := case["waits_per_1000"]["before"]:
        missed.append(f"{figure(waits)} waits")
    if case["engine_share"] >= SHARES[case["backbone"]]:
        missed.append(f"engine {percent(case['engine_share'])}")
    return missed


def _limit(case: Case) -> float | None:
    """The greatest 2 % ratio that Table 6 allows; None: it has no row."""
    minutes = TABLE6.get(case["backbone"])
    if minutes is None or case["table6"] is None:
        return None
    replay, aim = minutes
    if replay < aim:
        return float(case["table6"])
    # The paper rounds minutes to one decimal: equal ones allow a ratio a little above 1.
    return (aim + 0.05) / (replay - 0.05)


def _labels(case: Case) -> list[str]:
    """Without what the caption and the head of the column say."""
    said = ("CPU", f"{case['layers']} of {case['of_layers']} layers")
    return [one_line(label) for label in case["labels"] if label not in said]


#: Labels that say how it was measured, and nothing of how it went.
_ALWAYS = ("random weights", "timed, not trained", "passes are CUDA graphs")


def _always(case: Case) -> str:
    return "; ".join(label for label in _labels(case) if label.startswith(_ALWAYS))


def _noted(cases: dict[str, Case]) -> str:
    """The bench's own warnings."""
    found = {
        title: ", ".join(label for label in _labels(case) if not label.startswith(_ALWAYS))
        for title, case in cases.items()
    }
    return f"The bench warns: {together(found)}." if any(found.values()) else ""
