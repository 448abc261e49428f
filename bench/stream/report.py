"""What ``real_stream.py`` found: scores, merges and events as one JSON and as tables."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import environment
from aimmerge_fast.events import Event, Open, Probe, read_events
from stream.arms import EVENTS, Progress

#: A later task is a fair trial of the adaptive schedule with this many merges, of which so many
#: come after the interval first changed.
LEAST_MERGES, LEAST_AFTER_CHANGE = 6, 2


def arm_result(progress: Progress, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One arm's scores, losses and, where it has an ``events.jsonl``, merges by task."""
    names = list(progress.before)
    final = progress.after[-1]
    last = len(names) - 1
    forgot = [final[n] - progress.after[i][n] for i, n in enumerate(names[:last])]
    result: dict[str, Any] = {
        "settings": settings,
        "seconds": {key: round(value, 1) for key, value in progress.seconds.items()},
        "before": progress.before,
        "after": dict(zip(names, progress.after, strict=True)),
        "mean_final_accuracy": sum(final.values()) / len(final),
        "mean_change_since_learned": sum(forgot) / len(forgot) if forgot else None,
        "adapter_sha256": dict(zip(names, progress.hashes, strict=True)),
        "trained_at_commits": progress.commits,
        "losses": dict(zip(names, progress.losses, strict=True)),
    }
    if (folder / EVENTS).is_file():
        events = list(read_events(folder / EVENTS))
        result["merges"] = {
            name: [_merge(e) for e in events if isinstance(e, Open) and e.task == name]
            for name in names
        }
        result["events"] = {name: _counts([e for e in events if e.task == name]) for name in names}
        later = {name: result["merges"][name] for name in names[1:]}
        result["trial"] = {name: _trial(merges) for name, merges in later.items()}
    return result


def whole_result(settings: dict[str, Any], arms: dict[str, Any]) -> dict[str, Any]:
    """The JSON of a run. ``first_task_same_bits``: without a memory all arms are plain training."""
    import peft
    import transformers

    first = settings["tasks"][0]
    hashes = {arm["adapter_sha256"][first] for arm in arms.values()}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": environment.commit(),
        "machine": {
            "cpu": environment.cpu_model(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
        },
        "settings": settings,
        "first_task_same_bits": len(hashes) == 1,
        "arms": arms,
    }


def show(result: dict[str, Any]) -> None:
    """Accuracies before and after every task, merges and events, for people."""
    names = result["settings"]["tasks"]
    print("\naccuracy in % (exact match), rows: tested task, columns: when")
    for arm, found in result["arms"].items():
        print(f"\n{arm:<12}{'before':>10}" + "".join(f"{'after ' + n:>16}" for n in names))
        for name in names:
            cells = [found["after"][column].get(name) for column in names]
            shown = "".join(f"{'-' if c is None else f'{100 * c:.1f}':>16}" for c in cells)
            print(f"  {name:<10}{100 * found['before'][name]:>10.1f}{shown}")
        change = found["mean_change_since_learned"]
        print(
            f"  mean at the end {100 * found['mean_final_accuracy']:.1f}"
            + ("" if change is None else f", change since learned {100 * change:+.1f}")
            + f"; {found['seconds']['training']:.0f} s training, "
            f"{found['seconds']['evaluation']:.0f} s evaluation"
        )
    print(f"\nall arms same bits after the first task: {_yes(result['first_task_same_bits'])}")
    for arm, found in result["arms"].items():
        for name, trial in found.get("trial", {}).items():
            _show_merges(arm, name, found["merges"][name], found["events"][name], trial)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Written aside and renamed, so that a reader never sees half of it."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    aside.replace(path)


def _merge(event: Open) -> dict[str, Any]:
    return {
        "step": event.step,
        "kind": event.kind,
        "S": event.S,
        "t": event.t,
        "F": event.F,
        "learning_signal": event.learning_signal,
        "alpha_new": event.alpha_new,
        "alpha_past": event.alpha_past,
        "memory_steps": event.memory_steps,
        "next_S": event.next_S,
        "cold": event.cold,
    }


def _counts(events: list[Event]) -> dict[str, Any]:
    """Numbers of events by type, of merges by kind, and of merges whose weights are 1 and 0."""
    opened = [event for event in events if isinstance(event, Open)]
    return {
        "events": dict(Counter(event.event for event in events)),
        "probe_codes": dict(Counter(event.code for event in events if isinstance(event, Probe))),
        "merges_by_kind": dict(Counter(event.kind for event in opened)),
        "no_op": sum(event.alpha_past == 0 for event in opened),
        "discarding": sum(event.alpha_new == 0 for event in opened),
        "memory_steps": sum(event.memory_steps for event in opened),
    }


def _trial(merges: list[dict[str, Any]]) -> dict[str, Any]:
    changed = [place for place, merge in enumerate(merges) if merge["next_S"] != merge["S"]]
    after = len(merges) - 1 - changed[0] if changed else 0
    enough = len(merges) >= LEAST_MERGES and after >= LEAST_AFTER_CHANGE
    return {"merges": len(merges), "after_first_change": after, "enough": enough}


def _show_merges(
    arm: str, task: str, merges: list[dict[str, Any]], counts: dict[str, Any], trial: dict[str, Any]
) -> None:
    kinds = ", ".join(
        f"{n} {k.removeprefix('merge_')}" for k, n in counts["merges_by_kind"].items()
    )
    print(
        f"\n{arm}, {task}: {trial['merges']} merges ({kinds or 'none'}; {counts['no_op']} no-op, "
        f"{counts['discarding']} discarding), {counts['memory_steps']} memory steps; "
        + ", ".join(f"{n} {kind}" for kind, n in counts["events"].items())
    )
    print("  intervals " + " ".join(f"{m['S']}>{m['next_S']}" for m in merges))
    print(
        f"  {LEAST_MERGES} merges, {LEAST_AFTER_CHANGE} of them after the interval changed: "
        f"{_yes(trial['enough'])} ({trial['after_first_change']} after)"
    )


def _yes(value: bool) -> str:
    return "yes" if value else "NO"
