"""Parameters in two tables, as if they lay on two devices, on a machine that has one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor

from aimmerge_fast.binding import Binding
from aimmerge_fast.parameters import Parameters

DEVICES = [torch.device("cpu"), torch.device("cpu", 0)]


def halves(binding: Binding) -> list[list[Tensor]]:
    """Every other parameter."""
    flat = binding.parameters.flat()
    return [flat[0::2], flat[1::2]]


@contextmanager
def two_tables() -> Iterator[None]:
    with (
        mock.patch.object(Parameters, "devices", return_value=DEVICES),
        mock.patch.object(Binding, "tables", halves),
    ):
        yield
