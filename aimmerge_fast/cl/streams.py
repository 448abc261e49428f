"""Task orders by name: the paper's seven, the released code's eighth, TRACE's, and any list.

Orders 1-7 are Table 12 of the AIMMerging paper (Standard CL, Long Sequence, SuperNI). Its text says
"five tasks" of Standard CL; orders 1-3 hold four, and no order of them has Yelp. ``order15b`` is
the 15-task order that only the released code knows (its dataset id 2). The paper runs a 19-task
sequence without giving its order; ``cross19`` is ours: order 1, then order 6.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

_STANDARD = ("dbpedia", "amazon", "yahoo", "agnews")
_SUPERNI = (
    *("task1572", "task363", "task1290", "task181", "task002", "task1510", "task639", "task1729"),
    *("task073", "task1590", "task748", "task511", "task591", "task1687", "task875"),
)
_TRACE = (
    *("C-STANCE", "FOMC", "MeetingBank", "Py150", "ScienceQA"),
    *("NumGLUE-cm", "NumGLUE-ds", "20Minuten"),
)


@dataclasses.dataclass(frozen=True)
class Stream:
    """Tasks in the order they are learned; ``label`` says so where only a part of them runs."""

    name: str
    tasks: tuple[str, ...]
    benchmark: str
    label: str | None = None

    @property
    def title(self) -> str:
        """For headings: ``order4 (Long Sequence), 9 of 15 tasks``."""
        name = self.name if self.name == self.benchmark else f"{self.name} ({self.benchmark})"
        return name + (f", {self.label}" if self.label else "")


def _orders() -> dict[str, Stream]:
    orders = {
        "order1": (_STANDARD, "Standard CL"),
        "order2": (("dbpedia", "amazon", "agnews", "yahoo"), "Standard CL"),
        "order3": (("yahoo", "amazon", "agnews", "dbpedia"), "Standard CL"),
        "order4": (
            "mnli cb wic copa qqp boolqa rte imdb yelp amazon sst-2 dbpedia agnews multirc yahoo",
            "Long Sequence",
        ),
        "order5": (
            "yelp amazon mnli cb copa qqp rte imdb sst-2 dbpedia agnews yahoo multirc boolqa wic",
            "Long Sequence",
        ),
        "order6": (_SUPERNI, "SuperNI"),
        "order7": (
            "task748 task073 task1590 task639 task1572 task1687 task591 task363 task1510 task1729 "
            "task181 task511 task002 task1290 task875",
            "SuperNI",
        ),
        "order15b": (
            "multirc boolqa wic mnli cb copa qqp rte imdb sst-2 dbpedia agnews yelp amazon yahoo",
            "Long Sequence",
        ),
        "cross19": ((*_STANDARD, *_SUPERNI), "19 tasks"),
        "trace": (_TRACE, "TRACE"),
    }
    return {
        name: Stream(name, tuple(tasks.split() if isinstance(tasks, str) else tasks), benchmark)
        for name, (tasks, benchmark) in orders.items()
    }


ORDERS: dict[str, Stream] = _orders()

# What a table should say about an order beyond its tasks.
REMARKS = {
    "order15b": "dataset id 2 of the released code; not in the paper",
    "cross19": "our order: the paper does not give its 19-task order; order 1, then order 6",
}

# Dataset ids of the released code.
_DATASET_IDS = {
    **{"1": "order4", "2": "order15b", "3": "order5", "4": "order1"},
    **{"5": "order2", "6": "order3", "7": "order6", "8": "order7"},
}

_ALIASES = {
    **{"ag": "agnews", "agnews": "agnews", "sst2": "sst-2", "boolq": "boolqa", "boolqa": "boolqa"},
    **{"dbpedia14": "dbpedia", "yahooanswers": "yahoo", "yahooanswerstopics": "yahoo"},
    **{"amazonreviews": "amazon", "amazonreviewfull": "amazon", "yelpreviewfull": "yelp"},
    **{"yelpreview": "yelp", "agnewstopic": "agnews", "multinli": "mnli"},
}

KNOWN_TASKS: tuple[str, ...] = tuple(
    dict.fromkeys(task for order in ORDERS.values() for task in order.tasks)
)
_BY_KEY = {re.sub(r"[^a-z0-9]", "", task.lower()): task for task in KNOWN_TASKS}


def task_name(text: str) -> str:
    """The name used here for a task: ``AG_News`` is agnews, ``task73_commonsense`` is task073.

    A name that is not known comes back stripped and otherwise as it is.
    """
    text = text.strip()
    numbered = re.match(r"task_?0*(\d+)(?:[_\-].*)?$", text, re.IGNORECASE)
    if numbered:
        return f"task{int(numbered[1]):03d}"
    key = re.sub(r"[^a-z0-9]", "", text.lower())
    return _ALIASES.get(key) or _BY_KEY.get(key) or text


def stream(spec: str | Sequence[str], *, folder: Path | None = None) -> Stream:
    """An order by name, or a list of tasks (``"dbpedia,yahoo"``); ``"all"`` is all of ``folder``.

    With a folder, the tasks found in it are known too. ``ValueError``: an unknown order or task
    (lists the known and the closest), a task named twice, an empty list, ``all`` with no folder.
    """
    if isinstance(spec, str):
        name = spec.strip()
        order = ORDERS.get(_order_name(name))
        if order is not None:
            return order
        if name.lower() == "all":
            return _all_tasks(folder)
        names = [part.strip() for part in name.split(",") if part.strip()]
    else:
        names = [str(part).strip() for part in spec]
    if not names:
        raise ValueError(f"the stream {spec!r} names no task; {_known(())}")
    found = _found(folder)
    known = {*KNOWN_TASKS, *found}
    tasks = [name if name in found else task_name(name) for name in names]
    for name, task in zip(names, tasks, strict=True):
        if task not in known:
            raise ValueError(_unknown(name, len(names) == 1, found))
    twice = sorted({task for task in tasks if tasks.count(task) > 1})
    if twice:
        raise ValueError(
            f"the stream {', '.join(names)} names {', '.join(twice)} more than once; a task is "
            "learned once (aliases count: ag is agnews)"
        )
    return _named(tuple(tasks))


def _named(tasks: tuple[str, ...]) -> Stream:
    """The order that these tasks are, so a list spelled out keeps its name in tables."""
    for order in ORDERS.values():
        if order.tasks == tasks:
            return order
    return Stream("custom", tasks, "custom")


def _order_name(text: str) -> str:
    key = text.lower().replace(" ", "").replace("_", "").replace("-", "")
    if key.startswith("datasetid"):
        return _DATASET_IDS.get(key.removeprefix("datasetid").lstrip("=:"), key)
    return f"order{key}" if key in {"1", "2", "3", "4", "5", "6", "7", "15b"} else key


def _all_tasks(folder: Path | None) -> Stream:
    if folder is None:
        raise ValueError("the stream 'all' is all tasks of a data folder: give the folder")
    tasks = _found(folder)
    if not tasks:
        raise ValueError(f"{folder} holds no task files; see `aimmerge data` for the layouts")
    return _named(tuple(tasks))


def _found(folder: Path | None) -> tuple[str, ...]:
    if folder is None:
        return ()
    from aimmerge_fast.cl.data.layout import find_tasks  # the data package imports this module

    return tuple(find_tasks(folder))


def _unknown(name: str, alone: bool, found: Iterable[str]) -> str:
    names = [*KNOWN_TASKS, *_ALIASES, *found, *(ORDERS if alone else ())]
    by_lower = {candidate.lower(): candidate for candidate in names}
    close = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.6)
    hint = f" (closest: {by_lower[close[0]]})" if close else ""
    return f"{'order or task' if alone else 'task'} {name!r} is not known{hint}; {_known(found)}"


def _known(found: Iterable[str]) -> str:
    extra = [task for task in found if task not in KNOWN_TASKS]
    here = f"; in this folder: {', '.join(extra)}" if extra else ""
    return f"known orders: {', '.join(ORDERS)}; known tasks: {', '.join(KNOWN_TASKS)}{here}"
