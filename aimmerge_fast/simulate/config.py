"""The configuration that ``aimmerge simulate`` runs: the recorded one and its overrides."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aimmerge_fast.config import AIMConfig


def parse_overrides(settings: Sequence[str]) -> dict[str, Any]:
    """Typed values of ``field=value`` texts; ``ValueError`` names a bad one."""
    types = {item.name: str(item.type) for item in dataclasses.fields(AIMConfig)}
    overrides = {}
    for setting in settings:
        name, equals, text = (part.strip() for part in setting.partition("="))
        if not equals:
            raise ValueError(f"--set {setting}: write field=value, e.g. --set s_init=4")
        if name not in types:
            raise ValueError(
                f"--set {setting}: unknown field {name!r}; the fields are {', '.join(types)}"
            )
        overrides[name] = _typed(name, types[name], text)
    return overrides


def configure(
    recorded: Mapping[str, Any], overrides: Mapping[str, Any]
) -> tuple[AIMConfig, list[str]]:
    """The recorded configuration with ``overrides``, and notes on fields that had to be dropped.

    Another policy or schedule leaves behind the recorded fields that only the old one reads.
    """
    # what a fusion does to the entries shows in the recorded signals; it decides nothing
    fields = {name: value for name, value in recorded.items() if name != "fusion"}
    unread = _policy_fields(fields, overrides) + _schedule_fields(overrides)
    removed = {name: fields.pop(name) for name in unread if name in fields}
    fields |= overrides
    dropped = [
        name for name, value in removed.items() if value not in (None, []) and name not in overrides
    ]
    notes = []
    if dropped:
        chosen = " ".join(f"{n}={overrides[n]}" for n in ("policy", "schedule") if n in overrides)
        notes.append(f"{chosen} does not read {', '.join(dropped)}: left out of the config")
    return AIMConfig.from_dict(fields), notes


def _policy_fields(fields: Mapping[str, Any], overrides: Mapping[str, Any]) -> list[str]:
    """Fields that the recorded policy reads and the new one does not."""
    if "policy" not in overrides or "policy" not in fields:
        return []
    new = AIMConfig(policy=overrides["policy"]).to_dict()
    return [name for name in AIMConfig(policy=fields["policy"]).to_dict() if name not in new]


def _schedule_fields(overrides: Mapping[str, Any]) -> list[str]:
    if "schedule" not in overrides:
        return []
    readers = {"s_hi": "random", "merge_at": "at"}
    return [name for name, reader in readers.items() if overrides["schedule"] != reader]


def _typed(name: str, kind: str, text: str) -> Any:
    base = kind.removesuffix(" | None")
    if base != kind and text.lower() == "none":
        return None
    parse, what = _PARSERS[base]
    try:
        return parse(text)
    except ValueError:
        allowed = f"{what} or none" if base != kind else what
        raise ValueError(f"--set {name}={text}: {name} takes {allowed}") from None


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError
    return text.lower() == "true"


def _steps(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",")) if text else ()


_PARSERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "str": (str, "a word"),
    "int": (int, "an integer"),
    "float": (float, "a number"),
    "bool": (_boolean, "true or false"),
    "tuple[int, ...]": (_steps, "integers with commas between them"),
}
