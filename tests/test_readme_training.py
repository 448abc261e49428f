"""The README's tables of training, growth and scores of hand-made records."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from readme import scores, sweep, training
from readme.records import ReadmeError
from tests.pages import rows
from tests.result_files import CPU, GPU, made
from training import phases

SUMMARY = {
    **{"backbone": "t5-large", "layers": 24, "of_layers": 24, "repeats": 3},
    "settings": {
        **{"layers": 0, "batch": 8, "seq": 256, "history_rows": 4, "memory_rows": 4},
        **{"past_tasks": 2, "steps": 16, "s_init": 8, "repeats": 3, "dtype": "bfloat16"},
        **{"probe": "before", "seed": 42},
    },
    "seconds": {
        **{"plain": [0.01, 0.0123, 0.02], "replay": [0.01, 0.0125, 0.02]},
        **{"matched": [1.0, 1.239, 2.0], "released": [2.0, 12.34, 13.0], "aim": [0.1, 1.5, 2.0]},
    },
    "rows": {"aim": {"history": 4.0, "memory": 2.0}, "matched": {"history": 0.0, "memory": 4.0}},
    "ratios": {
        **{"plain": [1.4, 1.505, 1.6], "replay": [1.0, 1.05, 1.1]},
        "matched": [0.994, 1.0496, 1.06],
    },
    "table6": 1.0,
    "syncs_per_step": {"aim-before": {"method": 0.0}, "released": {"method": 434.25}},
    "waits_per_1000": {"before": 0.0, "after": 512.5, "steps": 1000, "timed": 0.0},
    "engine_share": 0.00052,
    "labels": ["CPU", "random weights", "timed, not trained: unknown"],
}


def training_lines(folder: Path, gpu: bool = False, **summaries: Any) -> list[str]:
    backbones = {name: {"summary": case} for name, case in summaries.items()}
    commits = {"commits": ["1111111aaa", None]}
    record = {**(GPU if gpu else CPU), **commits, "backbones": backbones}
    files = {"training_overhead_cpu": {**CPU, **commits, "backbones": {}}}
    files["gpu_training_overhead" if gpu else "training_overhead_cpu"] = record
    return training.block(made(folder, **files))


NO_GRAPHS = ["", "GPU, passes as CUDA graphs: not run on a GPU."]
NO_GPU = ["", "GPU: not run on a GPU.", *NO_GRAPHS]


def test_training(tmp_path: Path) -> None:
    lines = training_lines(tmp_path, **{"t5-large": SUMMARY})
    assert lines[0] == (
        "**CPU: Made, 2 threads**; Python 3.12.1, torch 2.13.0; commits 1111111, unknown; "
        "2026-12-01; base in bfloat16, 8 × 256 tokens, a merge every 16 steps, median of 3 repeats "
        "of 16 steps; random weights; timed, not trained: unknown."
    )
    assert lines[2] == "| | T5-large, all layers |"
    cells = [row[1] for row in rows("\n".join(lines))]
    # By hand: plain 16 passes; AIM 16 + 4 + 2 * 2 = 24; 2 %: 16 * 1.04; matched 16 + 2 * 4.
    assert cells == [
        *("12.3 ms", "12.5 ms", "1.24 s", "1.50 s", "12.3 s (not run)"),
        *("1.50 (1.40-1.60)", "1.05 (1.00-1.10)", "1.00", "1.05 (0.99-1.06)", "1.50, 1.44, 1.00"),
        *("4 + 2; 0.32; 4", "0; 434; not run", "0; 512 (in 1,000 steps); 0", "0.052 %"),
    ]
    assert lines[-7].endswith("an engine below 1 %. **All met.**")  # 1.4 / 1.4 may be 1.07
    assert lines[-5:] == ["Not run here: Qwen3-1.7B, LLaMA2-7B, LLaMA2-13B.", *NO_GPU]


def test_training_targets_that_are_missed_and_warnings(tmp_path: Path) -> None:
    case = copy.deepcopy(SUMMARY) | {"backbone": "llama2-7b", "layers": 4, "of_layers": 32}
    case |= {"table6": 1.31111, "engine_share": 0.001, "repeats": 2}
    case["ratios"] |= {"replay": [1.2, 1.32, 1.4], "matched": [1.0, 1.0504, 1.1]}
    case["syncs_per_step"]["aim-before"]["method"] = 0.5
    case["waits_per_1000"]["before"] = 2.0
    case["labels"] = [*SUMMARY["labels"], "4 of 32 layers", "few repeats: 2"]
    lines = training_lines(tmp_path, gpu=True, **{"llama2-7b": case, "t5-large": SUMMARY})
    assert "GPU: not run on a GPU." not in lines
    at = next(at for at, line in enumerate(lines) if line.startswith("**GPU: Made H100**; driver"))
    assert "; T5-large: base in bfloat16" in lines[at]
    assert "median of 2 repeats" in lines[at]
    assert lines[at + 2] == "| | T5-large, all layers | LLaMA2-7B, 4 of 32 layers |"
    assert lines[-2:] == NO_GRAPHS
    assert lines[-5].endswith(
        "an engine below 0.1 % or 1 %. **Missed: LLaMA2-7B 2 % ratio 1.320; LLaMA2-7B matched "
        "ratio 1.050; LLaMA2-7B 0.500 synchronising calls; LLaMA2-7B 2.00 waits; LLaMA2-7B engine "
        "0.1 %.** The bench warns: LLaMA2-7B: few repeats: 2."
    )


def test_where_a_step_goes(tmp_path: Path) -> None:
    seconds: Any = {name: {"host": 0.001234, "device": 0.0025} for name in phases.NAMES}
    seconds |= {"probe": {"host": 0.0, "device": 0.0}, "loop": {"host": 2.5, "device": None}}
    of_aim = {"arm": "aim", "phases": seconds}
    case = SUMMARY | {"phases": [{"arm": "plain", "phases": {}}, of_aim]}
    cells = [row[1] for row in rows("\n".join(training_lines(tmp_path, **{"t5-large": case})))]
    assert cells[-1] == f"{'1.23 (2.50); ' * 2}0 (0); {'1.23 (2.50); ' * 2}2,500"


def test_graphs_have_a_table_of_their_own(tmp_path: Path) -> None:
    case = SUMMARY | {"labels": ["random weights", "passes are CUDA graphs"]}
    record = {**GPU, "commits": ["2222222"], "backbones": {"t5-large": {"summary": case}}}
    cpu = {**CPU, "commits": [], "backbones": {}}
    files = {"training_overhead_cpu": cpu, "gpu_training_overhead_graphs": record}
    lines = training.block(made(tmp_path, **files))
    at = lines.index("GPU: not run on a GPU.")
    assert lines[at + 2].startswith("**GPU: Made H100**")
    assert lines[at + 2].endswith("; random weights; passes are CUDA graphs.")


def test_training_without_a_finished_backbone(tmp_path: Path) -> None:
    lines = training_lines(tmp_path)
    assert not rows("\n".join(lines))
    assert lines[2] == "Not run here: T5-large, Qwen3-1.7B, LLaMA2-7B, LLaMA2-13B."
    with pytest.raises(ReadmeError, match="unknown backbones gpt"):
        training_lines(tmp_path, gpt=SUMMARY)


def test_scores_of_a_stream(tmp_path: Path) -> None:
    arm = {
        **{"name": "x", "label": "X", "method": "aim", "finished": True},
        **{"settings": {"s_init": 2, "alpha_floor": 0.2}, "metrics": {"OP": 71.25, "BWT": -0.04}},
        **{"scores": [[80.0, None], [78.5, 64.0]], "rows": {"training": 2880, "memory": 1104}},
        "merges": {"total": {"merges": {"due": 3, "forced": 2}}},
    }
    control = {**arm, "settings": {"counts": {"a": 5}}, "metrics": {"OP": 1.0, "BWT": 2.06}}
    control["merges"] = {"total": {"merges": {"due": 5, "forced": 0}}}
    replay = {**arm, "settings": {}, "method": "replay", "merges": None}
    record = {"tasks": {"a": {}, "b": {}}, "arms": [arm, control, replay]}
    record["arms"].append({**arm, "finished": False, "settings": {}})
    lines = scores.real(made(tmp_path, real_comparison=record))
    shared = ["78.5 (−1.5)", "64.0"]
    assert rows("\n".join(lines)) == [
        ["X, `s_init=2, alpha_floor=0.2`", *shared, "71.2", "0.0", "5 (2 forced)", "1,104"],
        ["control: X", *shared, "1.0", "+2.1", "5", "1,104"],
        ["X (2 % mixed in)", *shared, "71.2", "0.0", "–", "among the 2,880 trained"],
        ["X", *["not finished"] * 6],
    ]


GROWTH = {
    **{"backend": "native", "sizes": 2, "slope_all": 0.9012, "bandwidth_bound_sizes": 3},
    **{"bandwidth_bound_from": 3162278, "slope": 1.0021, "slope_target": [0.95, 1.05]},
    **{"linear": True, "tensor_counts": 7, "tensors_ratio": 1.034, "tensors_ratio_target": 1.15},
    **{"flat": True, "foreach_tensors_ratio": 52.13},
}


def case(grows: str, entries: int, tensors: int, us: float, **more: Any) -> dict[str, Any]:
    head = {"backend": "native", "grows": grows, "entries": entries, "tensors": tensors}
    figures = {"host_us": 9.5, "merge_host_us": 12.0, "launches": 2, "target_us": 28.0}
    # where tensors grow, the time of a size is no target
    late = {"within_target": grows == "entries"}
    return {**head, "skipped": None, "us": us, **figures, **late, **more}


def sweep_lines(
    folder: Path, change: dict[str, Any], *more: dict[str, Any], gpu: bool = True
) -> list[str]:
    cases = [
        *(case("entries", 100000, 128, 10.0), case("entries", 1000000, 128, 100.0)),
        case("tensors", 4194304, 10, 44.7),
        case("tensors", 4194304, 10000, 46.2, merge_host_us=5400.0),
        *more,
    ]
    head = {**(GPU if gpu else CPU), "ceiling_gbs": 3012.0, "load": "load average 1.0; words"}
    record = {**head, "cases": cases, "slopes": [{**GROWTH, **change}]}
    return sweep.block(
        made(folder, **{f"{'gpu_' * gpu}merge_sweep{'' if gpu else '_cpu'}": record})
    )


def test_sweep(tmp_path: Path) -> None:
    assert sweep.block(tmp_path) == ["CPU: not run.", "", "GPU: not run on a GPU."]
    lines = sweep_lines(tmp_path, {})
    assert lines[2].endswith("; 2026-12-01; ceiling 3,012 GB/s; load average 1.0.")
    assert rows("\n".join(lines)) == [
        [
            *("`native`", "0.901 (2, 100,000 to 1,000,000)", "1.002 (3, from 3,162,278 on)"),
            *("44.7 / 46.2", "1.03", "52.1", "9.50 / 9.50", "12.0 / 5,400"),
        ]
    ]
    assert lines[-1].endswith(
        "Targets: slope 0.95 to 1.05 over the bandwidth-bound sizes, largest by smallest at most "
        "1.15; the time of each number of entries, 2 launches. **All met.**"
    )


def test_a_sweep_that_misses_its_targets_or_was_not_run(tmp_path: Path) -> None:
    late = case("entries", 10, 3, 46.0, within_target=False, launches=None)
    large = {**case("entries", 10**9, 3, 1.0), "skipped": "needs 90 GB\n of memory"}
    eager = case("entries", 10, 3, 46.0, within_target=False, backend="eager", launches=99)
    change = {"slope": None, "linear": None, "flat": False, "tensors_ratio": 1.2}
    lines = sweep_lines(tmp_path, change, late, large, eager)
    assert rows("\n".join(lines))[0][1:3] == ["0.901 (2, 10 to 1,000,000)", "not run"]
    where = "`native` 10 entries in 3 tensors"
    assert lines[-3].endswith(
        f"**Missed: `native` largest by smallest 1.200; {where} 46.0 of 28.0 µs; {where} no "
        "launches seen.** Too few sizes to say: `native` slope."
    )
    assert lines[-1] == (
        "Not run: `native` 1,000,000,000 entries in 3 tensors: needs 90 GB of memory."
    )


def test_a_sweep_of_a_cpu(tmp_path: Path) -> None:
    change = {"slope": 1.0634, "linear": False, "flat": None, "tensors_ratio": None}
    lines = sweep_lines(tmp_path, change, case("entries", 10, 3, 46.0, launches=7), gpu=False)
    assert lines[-1] == "GPU: not run on a GPU."
    figures = ["0.0447 / 0.0462", "not run"]
    # what is bound by bandwidth, and flat, is judged on a GPU alone
    assert rows("\n".join(lines))[0][1:4] == ["0.901 (2, 10 to 1,000,000)", *figures]
    assert not any("Targets" in line or "bandwidth" in line for line in lines)
