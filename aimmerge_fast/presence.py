"""Which ranks still answer: what they write for each other into the store that they met in.

It is read and written only in trouble, and looked at now and then while a rank waits.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import torch.distributed as dist

#: Seconds that a rank in trouble waits for the others to say that they live, or that share of the
#: timeout if it is more: one that lives may be busy with its update.
_GRACE, _SHARE = 3.0, 1 / 60


#: Mergers built so far in a group; its ranks build them in the same order.
_mergers: Counter[str] = Counter()


class PeerError(RuntimeError):
    """Ranks that train one model fell out of step, differ, or are gone; it names them.

    In our exchanges a rank is missed after ``timeout``, a dead one at once. Gradients and shards
    are exchanged by torch: an error of it is turned into this one inside ``task()``, but for a rank
    that lives and hangs it comes only after the process group's own timeout.
    """


class Presence:
    """One rank's word on whether it lives, and what the others say.

    Args:
        group: of the ranks. rank, world: this one's number in it, and how many there are.
        timeout: seconds for which ranks wait for each other.
    """

    def __init__(self, group: Any, rank: int, world: int, timeout: float) -> None:
        self._rank, self._world = rank, world
        self._grace = max(_GRACE, timeout * _SHARE)
        self._prefix = ""
        if group is not None:  # of one merger: its trouble is not that of the next one
            _mergers[group.group_name] += 1
            self._prefix = f"aimmerge_fast/{group.group_name}/{_mergers[group.group_name]}"

    def trouble(self) -> bool:
        """Whether another rank is in trouble."""
        return bool(_store().check([f"{self._prefix}/trouble"]))

    def leave(self, why: str) -> None:
        """This rank lives, and takes part in nothing any more."""
        try:
            _store().set(f"{self._prefix}/left/{self._rank}", why)
            _store().set(f"{self._prefix}/trouble", "1")
        except RuntimeError:
            pass  # the others see the end of this process

    def missing(self, place: str, why: str) -> str:
        """What to raise when the ranks did not meet at ``place``: it names those who are gone."""
        here = f"rank {self._rank}, at {place}"
        try:
            silent, left, alive = self._roll_call(place)
        except RuntimeError:
            return (
                f"{here}: the ranks cannot be reached any more {why}; rank 0, where they met, may "
                "be gone"
            )
        told = [f"rank {rank} said: {said}" for rank, said in left.items()]
        if silent:
            ranks = ", ".join(map(str, silent))
            told.append(
                f"rank {ranks} did not take part in {place} {why}: it died, hangs, or calls step() "
                "another number of times; start all ranks again from the last checkpoint"
            )
        others = ", ".join(f"rank {rank} at {there}" for rank, there in alive.items())
        return "; ".join(told) or f"{here}: the ranks did not meet {why}; {others}"

    def _roll_call(self, place: str) -> tuple[list[int], dict[int, str], dict[int, str]]:
        """Ranks that do not answer, what those said that left, and where the others are."""
        store = _store()
        store.set(f"{self._prefix}/trouble", "1")
        store.set(f"{self._prefix}/alive/{self._rank}", place)
        silent = [rank for rank in range(self._world) if rank != self._rank]
        said: dict[str, dict[int, str]] = {"left": {}, "alive": {}}
        until = time.monotonic() + self._grace
        while silent and time.monotonic() < until:
            for rank in silent:
                word = next((w for w in said if store.check([f"{self._prefix}/{w}/{rank}"])), None)
                if word is not None:
                    said[word][rank] = store.get(f"{self._prefix}/{word}/{rank}").decode()
            silent = [rank for rank in silent if not any(rank in told for told in said.values())]
            time.sleep(0.02)
        return silent, said["left"], said["alive"]


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()
