"""Settings of a run: schema, arm texts, updates and learning rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_linear_schedule_with_warmup

from aimmerge_fast.cl.config import ArmSpec, RunConfig, build, parse_arm, read_yaml

NEEDED = {"stream": "order1", "data": "d", "model": "m", "out": "o", "arms": "aim"}


def made(**fields: Any) -> RunConfig:
    return build({**NEEDED, **fields})


# ---- errors --------------------------------------------------------------------------------


def test_an_unknown_setting_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"run.yaml: unknown setting 'step'; known are alpha, "):
        build({**NEEDED, "step": 3}, "run.yaml")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": "many"}, r"steps: .*valid integer.*given 'many'"),
        ({"steps": 0}, r"steps: .*greater than or equal to 1.*given 0"),
        ({"steps": 2.5}, r"steps: .*given 2.5"),
        ({"lr": 0}, r"lr: .*greater than 0"),
        ({"lr": float("nan")}, r"lr: "),
        ({"lr": float("inf")}, r"lr: .*finite"),
        ({"dropout": 1.0}, r"dropout: .*less than 1"),
        ({"dtype": "float8"}, r"dtype: .*'float32', 'bfloat16' or 'float16'.*given 'float8'"),
        ({"schedule": "cosine"}, r"schedule: .*'linear' or 'constant'"),
        ({"memory_ratio": 1.5}, r"memory_ratio: .*less than or equal to 1"),
        ({"seeds": []}, r"seeds: .*at least 1 item"),
        ({"seeds": [-1]}, r"seeds.0: .*greater than or equal to 0"),
        ({"arms": []}, r"arms: .*at least 1 item"),
        ({"arms": ["aim", "aim"]}, r"two arms are called 'aim'; give one another name"),
        ({"arms": ["aim+memories"]}, r"unknown recipe 'memories'; the known one is '\+memory'"),
        ({"arms": ["aim:s_init"]}, r"setting 's_init' must be KEY=VALUE"),
        ({"arms": [{"method": "aim", "ratio": 1}]}, r"unknown setting 'arms.0.ratio'"),
        ({"arms": [{"method": "aim", "name": "../x"}]}, r"'../x' cannot be the name of a folder"),
        ({"arms": [{"method": "aim", "name": ".x"}]}, r"'.x' cannot be the name of a folder"),
        ({"batch": 8, "micro_batch": 3}, r"batch=8 is no multiple of micro_batch=3"),
        ({"model": None}, r"model: "),
    ],
)
def test_a_wrong_setting_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**fields)


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(ValueError, match=r"settings: model: Field required$"):
        build({name: value for name, value in NEEDED.items() if name != "model"})


# ---- arms ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("aim", {"method": "aim", "memory_epochs": 0, "settings": {}}),
        ("seqlora+memory", {"method": "seqlora", "memory_epochs": 2, "settings": {}}),
        (
            "aim:alpha_floor=0.2,s_init=2,schedule=slow+,probe_dropout=false",
            {
                "method": "aim",
                "memory_epochs": 0,
                "settings": {
                    "alpha_floor": 0.2,
                    "s_init": 2,
                    "schedule": "slow+",
                    "probe_dropout": False,
                },
            },
        ),
        ("fixed:match=aim-s_init=2", {"settings": {"match": "aim-s_init=2"}}),
    ],
)
def test_arm_texts(text: str, fields: dict[str, Any]) -> None:
    assert parse_arm(text).items() >= fields.items()


def test_arms_are_named_after_their_text() -> None:
    arms = made(arms=["aim", "seqlora+memory", "aim:s_init=2,alpha_floor=0.2"]).arms
    assert [arm.name for arm in arms] == ["aim", "seqlora+memory", "aim-s_init=2-alpha_floor=0.2"]
    named = made(arms=[{"method": "aim", "name": "ours", "memory_ratio": 0.1}]).arms[0]
    assert named == ArmSpec(method="aim", name="ours", memory_ratio=0.1)


def test_settings_survive_json_and_yaml(tmp_path: Path) -> None:
    config = made(arms=["aim:s_init=2", "seqlora+memory"], seeds=[1, 2], targets=["q", "v"])
    assert build(config.to_json()) == config
    file = tmp_path / "run.yaml"
    file.write_text("stream: [a, b]\ndata: records\nmodel: /m\nout: o\narms: [aim]\nlr: 1e-3\n")
    fields = read_yaml(file)
    assert fields["data"] == tmp_path / "records"  # a path of the file's folder
    assert fields["model"] == Path("/m")
    assert build(fields).lr == 1e-3  # a string to YAML 1.1
    file.write_text("- 1\n")
    with pytest.raises(ValueError, match="must hold a mapping of settings, got list"):
        read_yaml(file)
    file.write_text("a: [1\n")
    with pytest.raises(ValueError, match=r"run.yaml is no YAML"):
        read_yaml(file)


def test_identity_is_what_the_numbers_depend_on() -> None:
    one = made()
    same = made(out="elsewhere", eval_batch=3, threads=2, save_every=7, log_every=1, seeds=[1])
    assert one.identity() == made(single=True).identity()  # it adds to the numbers
    assert one.identity() == same.identity()
    for field, value in (("lr", 1e-3), ("steps", 5), ("dtype", "bfloat16"), ("test_items", 3)):
        assert one.identity() != made(**{field: value}).identity(), field


# ---- updates and learning rate -------------------------------------------------------------


@pytest.mark.parametrize(
    ("records", "updates"),
    [(1000, 310), (250, 80), (400, 120), (160, 50), (126, 40), (142, 40), (338, 100)],
)
def test_updates_of_the_authors_code(records: int, updates: int) -> None:
    """algorithm.md A.3: 10 * max(1, floor(ceil(N / 8) / 4)); CB, COPA and four SuperNI tasks."""
    assert made(batch=32, micro_batch=8).steps_for(records) == updates


def test_updates_without_accumulation() -> None:
    assert made(epochs=2).steps_for(17) == 2 * 3
    assert made(epochs=2, batch=32, micro_batch=8).steps_for(3) == 2
    assert made(steps=7).steps_for(1000) == 7
    assert made(steps=7).steps_for(3000, 3) == 21  # all tasks in one stage


@given(st.integers(1, 60), st.integers(0, 70))
def test_the_learning_rate_is_that_of_transformers(steps: int, warmup: int) -> None:
    parameter = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=0.3)
    schedule = get_linear_schedule_with_warmup(optimizer, warmup, steps)
    config = made(warmup=warmup, lr=0.3)
    for step in range(1, steps + 1):
        assert config.learning_rate(step, steps) == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()


def test_a_constant_rate_has_no_warm_up() -> None:
    config = made(schedule="constant", lr=0.1, warmup=5)
    assert {config.learning_rate(step, 9) for step in range(1, 10)} == {0.1}


def test_seeds_differ() -> None:
    with pytest.raises(ValueError, match=r"seeds: .*seed 42 is given twice"):
        made(seeds=[1, 42, 42])
