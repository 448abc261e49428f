"""One backbone's record as a table for people."""

from __future__ import annotations

from typing import Any

from overhead.backbones import BACKBONES
from training import phases
from training.blocks import ARMS
from training.results import AIM, RATIOS
from training.settings import RECORDS, Settings

#: AIM ÷ LoRAReplay with matched rehearsal: the target.
TARGET = 1.05
_RATIO_TITLES = {
    "plain": "plain LoRA",
    "replay": "LoRAReplay, 2 %",
    "matched": "LoRAReplay, matched",
}


def text(record: dict[str, Any]) -> str:
    """Arms, the three ratios, the engine's share, synchronising calls, waits, labels."""
    settings = Settings(**record["settings"])
    head = f"seconds for {settings.batch} task rows"
    lines = [
        f"{BACKBONES[record['backbone']].title}: {record['layers']} of {record['of_layers']} "
        f"layers, {record['parameters'] / 1e6:,.0f} M parameters, base in {settings.dtype}, LoRA "
        f"{record['entries']:,} fp32 entries in {record['tensors']} tensors",
        f"  {'; '.join(record['labels'])}",
        f"  {settings.batch} x {settings.seq} tokens; probe {settings.probe}; a merge every "
        f"{settings.interval} steps with {settings.interval // 2} memory steps (S held at "
        f"{settings.s_init}); {record['repeats']} repeats of {settings.steps} steps",
        f"  {head:32} {'min':>8} {'median':>8} {'max':>8} {'history':>8} {'memory':>8} "
        f"{'merges':>7} {'syncs':>7}",
    ]
    lines += [_row(record, kind.name, kind.title) for kind in ARMS]
    lines.append(
        "  history, memory: rows per step, forward only and trained on; merges: per block; syncs: "
        "synchronising calls per step by the method itself; matched counts a history row half, for "
        "it has no backward"
    )
    lines += [*_ratios(record, settings), *_engine(record), *_counts(record), *_phases(record)]
    return "\n".join(lines)


def _row(record: dict[str, Any], arm: str, title: str) -> str:
    least, median, most = record["seconds"][arm]
    rows, syncs = record["rows"][arm], record["syncs_per_step"]
    name = arm if arm != AIM else f"aim-{record['settings']['probe']}"
    shown = f"{syncs[name]['method']:.2f}" if name in syncs else "-"
    return (
        f"  {title:32} {least:8.3f} {median:8.3f} {most:8.3f} {rows['history']:8.2f} "
        f"{rows['memory']:8.2f} {rows['merges']:7.1f} {shown:>7}"
    )


def _ratios(record: dict[str, Any], settings: Settings) -> list[str]:
    aim, matched = record["rows"][AIM], record["rows"]["matched"]["memory"]
    share = settings.memory_size / RECORDS * settings.batch
    paper = record["table6"]
    beside = "no row in Table 6" if paper is None else f"Table 6, 8 V100: {paper:.2f}"
    if record["backbone"] == "t5-large":
        beside += " (0.93-1.07, its minutes have one decimal)"
    notes = {
        "plain": "0 memory rows",
        "replay": f"{share:.2f} memory rows, {settings.past_tasks} past tasks; {beside}",
        "matched": f"{matched:g} memory rows; target at most {TARGET}",
    }
    lines = [
        f"  AIM with {aim['history']:g} history and {aim['memory']:g} memory rows per step, "
        "divided by (min, median, max of the repeats; fastest by fastest)"
    ]
    for arm in RATIOS:
        least, median, most = record["ratios"][arm]
        lines.append(
            f"    {_RATIO_TITLES[arm]:20} {least:7.3f} {median:7.3f} {most:7.3f}   {notes[arm]}"
        )
    least, median, most = record["released_by_aim"]
    lines.append(
        f"    {'released by ours':20} {least:7.3f} {median:7.3f} {most:7.3f}   dead work in"
    )
    return lines


def _engine(record: dict[str, Any]) -> list[str]:
    times = record["engine_us"]
    least, median, most = times["in_loop"]
    return [
        f"  engine ({times['backend']}): alone {times['hook']:.1f} µs per observe and due, "
        f"{times['merge']:.0f} µs per merge, {times['per_step']:.1f} µs per step; host time in the "
        f"loop {least:.0f} {median:.0f} {most:.0f} µs per step = {record['engine_share']:.3%} of it"
    ]


def _counts(record: dict[str, Any]) -> list[str]:
    syncs, waits = record["syncs_per_step"], record["waits_per_1000"]
    shown = ", ".join(
        f"{arm} {one['method']:.2f} + {one['training']:.2f}" for arm, one in syncs.items()
    )
    over = f"over {waits['steps']} steps"
    return [
        f"  synchronising calls per step, by the method + by model, optimiser and loop: {shown}",
        f"  waits per 1,000 steps: probe before {waits['before']:g}, after {waits['after']:g} "
        f"({over}); in the timed blocks {waits['timed']:g}",
    ]


def _phases(record: dict[str, Any]) -> list[str]:
    """Where the time goes: ms per step by phase, host and on a GPU the stream's."""
    heads = "".join(f"{name:>16}" for name in phases.NAMES)
    lines = [f"  ms per step, host (GPU's stream){'':2}{heads}{'GPU busy':>10}"]
    titles = {kind.name: kind.title for kind in ARMS}
    for one in record["phases"]:
        cells = "".join(f"{_phase(one['phases'].get(name)):>16}" for name in phases.NAMES)
        busy = "-" if one["busy"] is None else f"{one['busy']:.0%}"
        lines.append(f"  {titles[one['arm']]:32}  {cells}{busy:>10}")
    return lines if record["phases"] else []


def _phase(taken: dict[str, float | None] | None) -> str:
    if taken is None or taken["host"] is None:
        return "-"
    device = "" if taken["device"] is None else f" ({1e3 * taken['device']:.2f})"
    return f"{1e3 * taken['host']:.2f}{device}"
