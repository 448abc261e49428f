"""How much each entry matters: two running averages of it, and the quantile of their product.

Sensitivity-based importance as Recurrent-KIF and TaSL use it: in one step an entry is worth
u = |theta * gradient|; S is u smoothed over the steps, U how far u strays from S, and S * U is the
entry's *score*.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from aimmerge_fast.kernels.arena import check_live, entry_layout
from aimmerge_fast.kernels.eager import exact_denormals

Tensor = torch.Tensor


@dataclass(frozen=True)
class Importance:
    """S and U of every entry of some tensors of one device.

    Attributes:
        sensitivity, uncertainty: S and U, 1-D fp32. As in an arena, the entries of each tensor
            start at a multiple of 64; what lies between tensors stays 0.
        places: (first, entries) of each tensor in them.
    """

    sensitivity: Tensor
    uncertainty: Tensor
    places: tuple[tuple[int, int], ...]

    def scores(self) -> list[Tensor]:
        """S * U, rounded once: one (n_i,) fp32 tensor for each parameter."""
        with torch.no_grad(), exact_denormals(_cpu_entries(self.sensitivity)):
            product = self.sensitivity * self.uncertainty
        return [product[first : first + entries] for first, entries in self.places]

    def reset_(self) -> None:
        """Forget all steps."""
        self.sensitivity.zero_()
        self.uncertainty.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        return {"sensitivity": self.sensitivity, "uncertainty": self.uncertainty}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what ``state_dict`` of an importance of the same tensors gave.

        Raises: ValueError when a tensor is missing, or has another shape or dtype.
        """
        own = self.state_dict()
        for name, tensor in own.items():
            given = state.get(name)
            if given is None or given.shape != tensor.shape or given.dtype != tensor.dtype:
                got = "nothing" if given is None else f"{tuple(given.shape)} {given.dtype}"
                raise ValueError(
                    f"importance state {name!r} must be {tuple(tensor.shape)} {tensor.dtype}, got "
                    f"{got}; was it saved for other parameters?"
                )
        for name, tensor in own.items():
            tensor.copy_(state[name])


def new_importance(parameters: Sequence[Tensor]) -> Importance:
    """An importance of zeros for ``parameters`` (any shapes, one device); keep it for life.

    Raises: ValueError naming the tensor for an unsupported dtype or several devices.
    """
    flat = [tensor.detach().reshape(-1) for tensor in parameters]
    device = check_live(flat)
    starts, entries = entry_layout(flat)
    with torch.inference_mode(False):  # they are written outside of it too
        pair = [torch.zeros(entries, dtype=torch.float32, device=device) for _ in range(2)]
    places = tuple((start, t.numel()) for start, t in zip(starts, flat, strict=True))
    return Importance(pair[0], pair[1], places)


def quantile(importance: Importance | Sequence[Importance], q: float) -> Tensor:
    """The q-quantile of the scores of all entries: () fp32 on the (first) importance's device.

    ``torch.quantile`` with linear interpolation, for any number of entries (that one stops at 2^24)
    and with the rank q * (n - 1) and the interpolation in fp64. NaN when a score is NaN, as there.
    The host waits for nothing.

    Args:
        importance: of all parameters; a list where they lie on several devices.
        q: 0 to 1.

    Raises: ValueError for another q, or where there is no entry.
    """
    parts = [importance] if isinstance(importance, Importance) else list(importance)
    count = sum(entries for part in parts for _, entries in part.places)
    if not 0.0 <= q <= 1.0:
        raise ValueError(f"q must be between 0 and 1, got {q!r}")
    if count == 0:
        raise ValueError("a quantile of no entries: pass the importance of at least one parameter")
    device = parts[0].sensitivity.device
    with torch.no_grad():
        # a copy to the CPU must have arrived when the host reads it
        later = device.type != "cpu"
        pieces = [score.to(device, non_blocking=later) for part in parts for score in part.scores()]
        return _quantile(torch.cat(pieces), q)


def _quantile(scores: Tensor, q: float) -> Tensor:
    rank = q * (scores.numel() - 1)
    low = math.floor(rank)
    high = math.ceil(rank)
    with exact_denormals(_cpu_entries(scores)):
        below, above = _smallest(scores, low, high)
        # equal ones first: between two infinities there is no difference to take a part of
        between = torch.where(below == above, below, below + (rank - low) * (above - below))
        # selecting takes NaN for the largest, so only the largest tells
        return torch.where(scores.isnan().any(), math.nan, between).float()


def _smallest(scores: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """The entries number ``low`` and ``high`` of the ascending order, as () fp64; may reorder."""
    if scores.device.type == "cpu":
        scores.numpy().partition((low, high))
        ordered = scores
    else:  # kthvalue has one block of threads for it all, and is refused as not deterministic
        ordered = torch.sort(scores).values
    return ordered[low].double(), ordered[high].double()


def _cpu_entries(tensor: Tensor) -> int:
    return tensor.numel() if tensor.device.type == "cpu" else 0
