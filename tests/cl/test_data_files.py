"""JSON lines and parquet files, in one piece or in shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aimmerge_fast.cl.data import load_task
from tests.cl.task_files import rows

SPLITS = {"train": 12, "dev": 4, "test": 5}


def test_json_lines(tmp_path: Path) -> None:
    for split, count in SPLITS.items():
        path = tmp_path / split / "mine.jsonl"
        path.parent.mkdir()
        lines = [json.dumps(row, ensure_ascii=False) for row in rows(count, f"{split}\u2028")]
        path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    for format in ("auto", "jsonl", "aimmerging"):
        task = load_task(tmp_path, "mine", format=format)
        assert task.train == rows(12, "train\u2028")
        assert len(task.test) == 5
    path.write_text('{"id": "a", "input": "p", "output": "a"}\n{"id"\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"mine.jsonl, line 2 \(record 1\) is no JSON"):
        load_task(tmp_path, "mine")
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"mine\.jsonl holds no records"):
        load_task(tmp_path, "mine")


def test_parquet_in_shards(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    def put(name: str, made: list[dict[str, Any]]) -> Path:
        path = tmp_path / "agnews/data" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.Table.from_pylist(made), path)
        return path

    train = rows(12, "train")
    put("train-00000-of-00002", train[:7])
    put("train-00001-of-00002", train[7:])
    put("validation-00000-of-00001", rows(4, "dev"))
    put("test-00000-of-00001", rows(5, "test"))
    for format in ("auto", "parquet"):
        task = load_task(tmp_path, "agnews", format=format)
        assert task.train == train
        assert (len(task.dev), len(task.test)) == (4, 5)
    bad = put("train-00001-of-00002", [{**train[0], "output": "green"}])
    with pytest.raises(ValueError, match=r"train-00001-of-00002.parquet, record 0, field 'output'"):
        load_task(tmp_path, "agnews")
    bad.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="no readable parquet file"):
        load_task(tmp_path, "agnews")
