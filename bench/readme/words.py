"""Figures, tables and captions as the README has them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

NOT_RUN = "not run"
CPU, GPU = "CPU", "GPU"


def figure(value: float | None) -> str:
    """Three significant digits, whole from 1,000 on; None is "not run"."""
    if value is None:
        return NOT_RUN
    rounded = float(f"{value:.3g}") if abs(value) < 1_000 else value
    if rounded == 0:
        return "0"
    return f"{rounded:,.{max(0, 2 - math.floor(math.log10(abs(rounded))))}f}"


def times(ratio: float) -> str:
    """As "9.8 ×"."""
    digits = 2 if ratio < 3 else 1 if ratio < 100 else 0
    return f"{ratio:,.{digits}f} ×"


def percent(share: float) -> str:
    """Whole from 10 % on, else two significant digits."""
    return f"{100 * share:,.0f} %" if share >= 0.1 else f"{two_digits(100 * share)} %"


def two_digits(value: float) -> str:
    """Two significant digits, never with an exponent."""
    return f"{Decimal(f'{value:.2g}'):f}"


def count(value: float) -> str:
    """A number of rows or steps: no digit that says nothing."""
    return f"{value:,.6g}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table as lines."""
    rule = "|" + "---|" * len(head)
    first, *others = ("|" + "".join(f" {cell} |" for cell in line) for line in (head, *rows))
    return [first.replace("|  |", "| |"), rule, *others]


def origin(record: Mapping[str, Any], kind: str) -> str:
    """What a record was measured on, in one line: device, versions, commit, day.

    ``ValueError``: it is of the other kind of device.
    """
    device = one_line(record["device"])
    if device.startswith("CPU") != (kind == CPU):
        raise ValueError(f"measured on {device!r}, which is no {kind}")
    parts = [f"**{device}**" if kind == CPU else f"**GPU: {device}**"]
    if record.get("driver"):
        parts.append(f"driver {record['driver']}")
    parts.append(", ".join(_versions(record["versions"])))
    parts += [_commits(record), record["date"][:10]]
    if record.get("quick"):
        parts.append("a quick run, which proves nothing")
    return "; ".join(parts)


def one_line(text: str) -> str:
    return " ".join(text.split())


def together(found: Mapping[str, str]) -> str:
    """One text where all titles share it, else each behind its title; empty ones are left out."""
    texts = {title: text for title, text in found.items() if text}
    if len(texts) == len(found) and len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{title}: {text}" for title, text in texts.items())


def _versions(versions: Mapping[str, str | None]) -> list[str]:
    # the package's own is always that of the commit
    known = {name: found for name, found in versions.items() if found and name != "aimmerge_fast"}
    return [f"{'Python' if name == 'python' else name} {known[name]}" for name in known]


def _commits(record: Mapping[str, Any]) -> str:
    found = record["commits"] if "commits" in record else [record["commit"]]
    return f"commit{'s' * (len(found) > 1)} " + ", ".join(_short(commit) for commit in found)


def _short(commit: str | None) -> str:
    if not commit:
        return "unknown"
    name, dirty, _ = commit.partition("-dirty")
    return name[:7] + (" with changes" if dirty else "")
