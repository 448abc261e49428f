"""The methods of a run. Adding one is one file here and one line in ``METHODS``."""

from __future__ import annotations

import difflib
import importlib

from aimmerge_fast.cl.methods.base import Method, Stage, Trainee

__all__ = ["METHODS", "Method", "Stage", "Trainee", "method_class"]

#: name -> "module:class"
METHODS = {
    "seqlora": "seqlora:SeqLoRA",
    "inclora": "inclora:IncLoRA",
    "replay": "replay:LoRAReplay",
    "mtl": "mtl:MultiTask",
    "kif": "kif:RecurrentKIF",
    "tasl": "tasl:TaSL",
    "aim": "aim:AIMMerging",
    "aim-released": "aim:Released",
    "aim-ls": "aim:WithoutLearningSignal",
    "aim-fs": "aim:WithoutForgettingSignal",
    "aim-mgm": "aim:ManualMerging",
    "aim-ifm": "ifm:ImportanceFusion",
    "fixed": "controls:FixedInterval",
    "random": "controls:RandomInterval",
    "single": "aim:SingleMerge",
}


def method_class(name: str) -> type[Method]:
    """The class of a method; ``ValueError`` lists the known names."""
    if name not in METHODS:
        close = difflib.get_close_matches(name, METHODS, 1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise ValueError(f"unknown method {name!r}{hint} The methods are {', '.join(METHODS)}")
    module, _, attribute = METHODS[name].partition(":")
    found: type[Method] = getattr(
        importlib.import_module(f"aimmerge_fast.cl.methods.{module}"), attribute
    )
    return found
