"""Benchmark records: a folder in any of the public formats to tasks that train and test."""

from __future__ import annotations

from aimmerge_fast.cl.data.loading import load_stream, load_task
from aimmerge_fast.cl.data.records import Record, TaskData

__all__ = ["Record", "TaskData", "load_stream", "load_task"]
