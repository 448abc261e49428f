"""Known defects of the released records, found in their content, and what is done about each.

``repaired`` mends what can be mended; ``faithful`` leaves the records as released. Both say what
was found, with counts.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from aimmerge_fast.cl.data.formats import RawTask
from aimmerge_fast.cl.data.prompts import options_in, shared_options
from aimmerge_fast.cl.data.records import Record, malformed

_NO_LABEL = "-"  # MultiNLI: the annotators did not agree
_QUOTED = re.compile(r"(?<!\w)[\"'\u201c\u2018]([A-Za-z][\w /-]{0,40})[\"'\u201d\u2019](?!\w)")
_NUMBERED = re.compile(r"\b\d+\)\s*([A-Za-z]+)")
_WORD = re.compile(r"[A-Za-z][A-Za-z /-]+")  # not "A. dovish", answered by A
_DEFINITION = re.compile(r"\[INS\](.*?)\n \[IN\]", re.DOTALL)
_TASK_ID = re.compile(r"(task\d+)-")

# The definition of task875 says "six emotions" and names five; upstream has these six, so cutting
# them merged sadness into surprise. No record tells the two apart.
_LABELS = {"task875": ("joy", "love", "anger", "fear", "surprise", "sadness")}


@dataclasses.dataclass(frozen=True)
class Repaired:
    """The splits after repair, the answer options if the prompts tell them, and the notes."""

    splits: dict[str, list[Record]]
    labels: tuple[str, ...]
    notes: list[str]


def repair(task: RawTask, variant: str) -> Repaired:
    """Mend a task's answers and ids, or only tell.

    ``ValueError``: an answer that is not among the options of its prompt, with file and record.
    """
    mend = variant == "repaired"
    splits = {split: [dict(record) for record in task.splits[split]] for split in task.splits}
    notes: list[str] = []
    labels = _options(task)
    cut = _cut_labels(task)
    if cut is not None:
        labels, note = _restore(splits, cut, mend)
        notes.append(note)
    elif labels:
        notes += _unlabelled(task, splits, labels, mend)
    notes += _foreign_ids(task.name, splits, mend)
    return Repaired(splits, labels, notes)


def join_lines(splits: Mapping[str, Sequence[Record]], variant: str) -> list[str]:
    """References with a newline inside: one line in the repaired variant (Rouge-L is the same)."""
    broken = {
        split: [record for record in splits[split] if "\n" in record["output"].strip()]
        for split in ("dev", "test")
    }
    count = sum(map(len, broken.values()))
    if not count:
        return []
    found = ", ".join(f"{len(broken[s])} of {len(splits[s])} {s}" for s in broken if broken[s])
    if variant == "faithful":
        return [f"references with a newline: {found}; left as released"]
    for record in (record for split in broken.values() for record in split):
        record["output"] = " ".join(record["output"].split("\n"))
    return [f"references with a newline: {found}; joined by spaces, which Rouge-L does not see"]


def _options(task: RawTask) -> tuple[str, ...]:
    """The options of the train prompts where they are what the answers are taken from."""
    train = task.splits.get("train") or task.splits["whole"]
    options = shared_options(train)
    known = {option.lower() for option in options}
    among = sum(_plain(record) in known for record in train)
    # "A. dovish, B. hawkish" answered by "A" lists options, but not answers.
    return options if 2 * among > len(train) else ()


def _plain(record: Record) -> str:
    return str(record["output"]).strip().lower()


def _unlabelled(
    task: RawTask, splits: dict[str, list[Record]], labels: Sequence[str], mend: bool
) -> list[str]:
    known = {label.lower() for label in labels}
    notes = []
    for split, records in splits.items():
        without = 0
        for record, (path, index) in zip(records, task.places[split], strict=True):
            own = (option.lower() for option in options_in(record["input"]))
            if _plain(record) in known or _plain(record) in own:
                continue
            if record["output"].strip() != _NO_LABEL:
                problem = f"{record['output']!r} is not among the options {', '.join(labels)}"
                raise malformed(path, index, task.answer_field, problem)
            without += 1
        if without:
            what = "dropped" if mend else "left as released, where no answer can be right"
            notes.append(f"{without} of {len(records)} {split} records are labelled '-'; {what}")
        if mend:
            splits[split] = [record for record in records if _plain(record) != _NO_LABEL]
    return notes


def _cut_labels(task: RawTask) -> dict[str, tuple[str, ...]] | None:
    """``{letter: the words it may stand for}`` where every answer is the first letter of a word."""
    records = [record for split in task.splits.values() for record in split]
    letters = sorted({record["output"].strip() for record in records})
    if not 2 <= len(letters) <= 26 or any(len(letter) != 1 for letter in letters):
        return None
    named = _named(records[0]["input"], task.name)
    if any(letter in named for letter in letters):
        return None  # the prompt asks for these letters
    words = [word for word in named if _WORD.fullmatch(word)]
    cut = {letter: tuple(word for word in words if word[0] == letter) for letter in letters}
    return cut if all(cut.values()) else None


def _named(prompt: str, task: str) -> list[str]:
    """The answers that a prompt names: its options, or what its definition quotes or numbers."""
    found = _DEFINITION.search(prompt)
    definition = found[1] if found else ""
    named = [*options_in(prompt), *_QUOTED.findall(definition), *_NUMBERED.findall(definition)]
    return list(dict.fromkeys([*named, *_LABELS.get(task, ())]))


def _restore(
    splits: dict[str, list[Record]], cut: dict[str, tuple[str, ...]], mend: bool
) -> tuple[tuple[str, ...], str]:
    records = [record for split in splits.values() for record in split]
    found = f"all {len(records)} labels are cut to their first character ({', '.join(cut)})"
    merged = {letter: words for letter, words in cut.items() if len(words) > 1}
    counts = Counter(record["output"].strip() for record in records)
    lost = "; ".join(
        f"{letter} stands for {' and '.join(words)} in {counts[letter]} records, which nothing "
        "can tell apart"
        for letter, words in merged.items()
    )
    if not mend:
        tail = f"; {lost}" if lost else ""
        return tuple(cut), f"{found} while the prompt asks for words; left as released{tail}"
    words = {letter: ws[0] for letter, ws in cut.items() if letter not in merged}
    for record in records:
        letter = record["output"].strip()
        record["output"] = words.get(letter, letter)
    mapped = ", ".join(f"{letter} to {word}" for letter, word in words.items())
    tail = f"; {lost}, so it stays {', '.join(merged)}" if lost else ""
    labels = tuple(words.get(letter, letter) for letter in cut)
    return labels, f"{found}; mapped to the words of the prompt ({mapped}){tail}"


def _foreign_ids(name: str, splits: dict[str, list[Record]], mend: bool) -> list[str]:
    """Ids that carry another task's number, as task1687's carry task195's."""
    if not re.fullmatch(r"task\d+", name):
        return []
    others: Counter[str] = Counter()
    for record in (record for records in splits.values() for record in records):
        found = _TASK_ID.match(record["id"])
        if found and int(found[1][4:]) != int(name[4:]):
            others[found[1]] += 1
            if mend:
                record["id"] = name + record["id"][len(found[1]) :]
    what = "renamed" if mend else "left as released"
    return [f"{count} records carry ids of {other}; {what}" for other, count in others.items()]
