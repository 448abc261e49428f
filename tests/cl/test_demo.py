"""The demo: loadable, the same bytes per seed, balanced, in conflict, learned and forgotten."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from aimmerge_fast.cl.config import RunConfig
from aimmerge_fast.cl.data import TaskData, load_stream
from aimmerge_fast.cl.demo import DEMO_SETTINGS, DemoFiles, reviews, write_demo
from aimmerge_fast.cl.demo import demo_config as demo_files
from aimmerge_fast.cl.encode import Encoder
from aimmerge_fast.cl.models import load_model
from aimmerge_fast.cl.streams import stream


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> DemoFiles:
    return write_demo(tmp_path_factory.mktemp("demo"), seed=7)


@pytest.fixture(scope="module")
def tasks(files: DemoFiles) -> dict[str, TaskData]:
    _, loaded = load_stream(files.data, stream(files.tasks, folder=files.data))
    return {task.name: task for task in loaded}


def test_the_loader_takes_the_records_as_they_are(tasks: dict[str, TaskData]) -> None:
    assert list(tasks) == ["opinion", "irony", "topic", "weather"]
    for task in tasks.values():
        assert task.metric == "accuracy"
        assert task.notes == ()
        assert [len(task.train), len(task.dev), len(task.test)] == [1200, 60, 240]
    assert tasks["topic"].labels == ("food", "room", "staff")
    assert tasks["irony"].labels == ("good", "bad")


def test_answers_are_balanced_in_every_split(tasks: dict[str, TaskData]) -> None:
    for task in tasks.values():
        for records in (task.train, task.dev, task.test):
            counts = Counter(record["output"] for record in records)
            assert set(counts) == set(task.labels or ())
            assert len(set(counts.values())) == 1


def test_tasks_conflict_on_the_same_reviews(tasks: dict[str, TaskData]) -> None:
    def answers(name: str) -> dict[str, str]:
        return {record["input"].split("\n")[1]: record["output"] for record in tasks[name].train}

    opinion, irony, weather = answers("opinion"), answers("irony"), answers("weather")
    assert opinion.keys() == irony.keys() == weather.keys() == answers("topic").keys()
    assert len(opinion) == 1200
    assert all(opinion[text] != irony[text] for text in opinion)
    assert sum(opinion[text] != weather[text] for text in opinion) == 600


def test_the_question_alone_tells_the_task(tasks: dict[str, TaskData]) -> None:
    questions = {
        name: {record["input"].split("\n")[0] for record in task.train}
        for name, task in tasks.items()
    }
    assert all(len(found) == 1 for found in questions.values())
    assert len(set.union(*questions.values())) == 4


def test_no_tested_review_is_trained_on(tasks: dict[str, TaskData]) -> None:
    for task in tasks.values():
        seen = {record["input"] for record in [*task.train, *task.dev]}
        assert not seen & {record["input"] for record in task.test}


def test_answers_follow_from_the_words() -> None:
    review = reviews.Review("On a foggy day the soup was quite superb.", "foul", "food", "praise")
    found = {name: task.answer(review) for name, task in reviews.TASKS.items()}
    assert found == {"opinion": "good", "irony": "bad", "topic": "food", "weather": "bad"}
    for split in reviews.draw_splits(3).values():
        for drawn in split:
            words = drawn.text.removesuffix(".").split()
            assert words[2] in reviews.WORDS[drawn.weather]
            assert words[5] in reviews.WORDS[drawn.thing]
            assert words[8] in reviews.WORDS[drawn.judgement]


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_same_seed_gives_the_same_bytes(files: DemoFiles, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    again = write_demo(tmp_path / "again", seed=7)
    other = write_demo(tmp_path / "other", seed=8)
    assert torch.equal(before, torch.get_rng_state())
    assert hashes(again.data) == hashes(files.data)
    assert hashes(again.model) == hashes(files.model) == hashes(other.model)
    assert hashes(other.data)["train/irony_T5.json"] != hashes(files.data)["train/irony_T5.json"]


def test_every_word_has_a_token(files: DemoFiles, tasks: dict[str, TaskData]) -> None:
    loaded = load_model(files.model)
    encoder = Encoder(loaded.tokenizer, seq2seq=loaded.seq2seq, max_tokens=64)
    unknown = loaded.tokenizer.unk_token_id
    assert unknown is not None
    for task in tasks.values():
        for record in task.train:
            prompt, answer = encoder.encode(record)
            assert unknown not in prompt + answer
            assert len(prompt) + len(answer) < 64  # nothing is cut
            assert len(answer) == 2
            assert encoder.text(answer) == record["output"]


@pytest.mark.parametrize("seed", [-1, 1.0, True, "1"])
def test_a_seed_must_be_a_count(seed: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be an integer of at least 0"):
        write_demo(tmp_path, seed)
    assert list(tmp_path.iterdir()) == []


def demo_config(files: DemoFiles, out: Path, **changes: Any) -> RunConfig:
    fields = {**DEMO_SETTINGS, "data": files.data, "model": files.model, "out": out, **changes}
    return RunConfig(**fields)


def test_the_settings_make_a_run(files: DemoFiles, tmp_path: Path) -> None:
    config = demo_config(files, tmp_path)
    assert [arm.method for arm in config.arms] == ["seqlora", "replay", "aim"]
    assert json.dumps(config.to_json())


def test_plain_lora_forgets_the_first_task_in_each_of_three_seeds(
    files: DemoFiles, tmp_path: Path
) -> None:
    """The demo's own settings; watching an arm and the size of the test change no weights."""
    from aimmerge_fast.cl.runner import run

    config = demo_config(
        files, tmp_path / "run", arms=["seqlora"], seeds=[1, 2, 3], monitor=False, test_items=120
    )
    arms = run(config)["arms"]
    assert [arm["seed"] for arm in arms] == [1, 2, 3]
    for arm in arms:
        scores = arm["scores"]
        assert all(scores[place][place] >= 80 for place in range(4))  # each was learned
        assert scores[0][0] - scores[-1][0] >= 20


def test_a_demo_of_another_seed_stays_as_it_is(tmp_path: Path) -> None:
    config = demo_files(tmp_path, 7)
    before = hashes(tmp_path)
    run = tmp_path / "run" / "run.json"
    run.parent.mkdir()
    run.write_text(json.dumps({"settings": config.to_json()}))
    demo_files(tmp_path, 7)
    with pytest.raises(ValueError, match=r"holds a demo with seeds \[7\], not 8; give another"):
        demo_files(tmp_path, 8)
    run.unlink()
    assert hashes(tmp_path) == before


def test_a_demo_on_other_records_stays_as_it_is(tmp_path: Path) -> None:
    config = demo_files(tmp_path, 7)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text(json.dumps({"settings": config.to_json()}))
    path = tmp_path / "data/train/irony_T5.json"
    path.write_text("of another version")
    with pytest.raises(ValueError, match=r"on other records \(irony_T5.json\)"):
        demo_files(tmp_path, 7)
    assert path.read_text() == "of another version"
