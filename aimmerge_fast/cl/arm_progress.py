"""How far an arm is: what its state remembers beside tensors."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass
class Progress:
    """``step`` updates of stage number ``stage`` are made.

    ``trained``: all of them are, and the stage's scores are being taken. ``scores[j][i]`` of task i
    after stage j, 0 to 100; ``losses`` by stage; ``rows`` passed through the model, by purpose.
    """

    stage: int = 0
    step: int = 0
    trained: bool = False
    scores: list[list[float | None]] = dataclasses.field(default_factory=list)
    initial: list[float | None] | None = None
    losses: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(
        default_factory=lambda: {"training": 0.0, "evaluation": 0.0}
    )
    rows: dict[str, int] = dataclasses.field(
        default_factory=lambda: {"training": 0, "memory": 0, "probe": 0}
    )
    commits: list[str | None] = dataclasses.field(default_factory=list)
