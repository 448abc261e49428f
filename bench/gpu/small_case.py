"""Every op on small tables, compared with the CPU's bits; what the sanitizers watch.

    PYTHONPATH=bench python3 -P -m gpu.small_case [--device cpu] [BACKEND ...]

The last tensor of a table ends where its memory ends, so that a step too far is seen.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from aimmerge_fast import AIMConfig, kernels

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
#: (dtype, entries, offset in entries); with and without fp32, so both geometries run.
TABLES = {
    "mixed": [(F32, 4097, 1), (BF16, 0, 0), (F16, 8200, 3), (BF16, 4096, 0), (F32, 4099, 0)],
    "narrow": [(BF16, 8200, 7), (F16, 4096, 0), (F16, 65, 1)],
    "empty": [(F32, 0, 0)],
}
CONFIGS = {
    "fused": AIMConfig(alpha_new=0.6),
    "kept": AIMConfig(alpha_new=1.0),
    "monitored": AIMConfig(schedule="monitor"),
}


@dataclasses.dataclass
class Case:
    """One table with its arenas, state and engine."""

    live: list[Tensor]
    anchor: Tensor
    mid: Tensor
    state: Tensor
    engine: kernels.Engine

    @classmethod
    def build(
        cls, table: str, config: AIMConfig, backend: str, device: torch.device, defer: bool
    ) -> Case:
        live = [torch.zeros(n + k, dtype=d, device=device)[k:] for d, n, k in TABLES[table]]
        # zeroed: the gaps between tensors are copied to the host below
        anchor, mid = (kernels.new_arena(live).zero_() for _ in range(2))
        state = kernels.new_state(config, defer=defer, device=device)
        made = cls(live, anchor, mid, state, kernels.engine(backend, live, anchor, mid, state))
        made.fill(0)
        kernels.copy_into(anchor, live)
        return made

    def fill(self, stage: int, bad: bool = False) -> None:
        """Values of a stage, from the host; ``bad``: the last entry is infinite."""
        draw = torch.Generator().manual_seed(stage)
        for tensor in self.live:
            values = 0.02 * torch.randn(tensor.numel(), generator=draw)
            if bad and tensor is self.live[-1] and len(values):
                values[-1] = torch.inf
            tensor.copy_(values.to(tensor.dtype))

    def bits(self) -> list[bytes]:
        """Everything written, with the controller's record of it but for addresses and NaNs."""
        fields = kernels.read_state(self.state)["state"]
        names = ("S", "t", "F", "g", "merges", "reject", "alpha1", "alpha2", "sequence", "lambda")
        numbers = repr([fields[name].item() for name in names]).encode()
        tensors = (*self.live, self.anchor, self.mid)
        return [t.cpu().contiguous().view(torch.uint8).numpy().tobytes() for t in tensors] + [
            numbers
        ]


def play(
    table: str, config: str, backend: str, device: torch.device, bad: int, defer: bool
) -> list[list[bytes]]:
    """Four losses and a merge; ``bad`` names the half that meets an infinite entry, 0: none."""
    case = Case.build(table, CONFIGS[config], backend, device, defer)
    for dtype in (F32, BF16, F16, torch.float64):
        case.engine.observe_(torch.tensor(1.5, dtype=dtype).to(device))
    seen = []
    for stage, half in ((1, case.engine.open_), (2, case.engine.close_)):
        if not (stage == 2 and bad == 1):
            case.fill(stage, bad == stage)
        half()
        if defer:
            fields = kernels.read_state(case.state)["state"]
            row = [[float(fields["partial_l1"]), float(fields["partial_bad"])]]
            case.engine.advance_(torch.tensor(row, dtype=torch.float64).to(device))
            case.engine.repair_()
        seen.append(case.bits())
    return seen


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gpu.small_case")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("backends", nargs="*")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    usable = [name for name, reason in kernels.available(device).items() if reason is None]
    backends = options.backends or [name for name in usable if name != "eager"]
    reference = "native" if kernels.available("cpu")["native"] is None else "eager"
    count = 0
    for backend in backends:
        for table in TABLES:
            for config in CONFIGS:
                for bad, defer in ((0, False), (1, False), (2, False), (0, True), (1, True)):
                    what = (table, config)
                    found = play(*what, backend, device, bad, defer)
                    wanted = play(*what, reference, torch.device("cpu"), bad, defer)
                    if found != wanted:
                        print(f"DIFFERENT: {backend} {what} bad={bad} defer={defer}")
                        return 1
                    count += 1
    print(f"small case: {count} merges as on the CPU, backends {' '.join(backends)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
