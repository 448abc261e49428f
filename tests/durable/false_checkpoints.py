"""Checkpoints whose files fit their manifest, but which are not what they say they are."""

from __future__ import annotations

import json
import shutil

from aimmerge_fast.durable import write_part
from tests.durable.mutations import MANIFEST, Mutant, read, resealed, write


class CheckpointMutant(Mutant):
    """A folder of ``Checkpoints``; ``others``: an older one, one of a larger world."""

    def renamed(self) -> None:
        name = self.dice.choice(["step-8", "step-10", "step-9-2", "step-123456789012345678901"])
        target = self.folder.with_name(name)
        self.folder.rename(target)
        self.folder, self.named = target, MANIFEST

    def elsewhere(self) -> None:
        target = self.folder.parent / "elsewhere"
        shutil.rmtree(target, ignore_errors=True)
        self.folder.rename(target)
        self.folder.symlink_to(target)
        self.named = ""

    def other_info(self) -> None:
        info = json.loads(self.files[MANIFEST])["info"]
        field = self.dice.choice(sorted(info))
        value = {"step": 7, "turn": 2, "parts": ["rank1"]}[field]
        less = {name: info[name] for name in info if name != field}
        self.named = MANIFEST
        changed = self.dice.choice([{**info, field: value}, less, {**info, "more": 1}])
        self.put(MANIFEST, resealed(self.files, changed)[MANIFEST])

    def parts_swapped(self) -> None:
        one, other = (f"aimmerge/rank{rank}.safetensors" for rank in (0, 1))
        swapped = {**self.files, one: self.files[other], other: self.files[one]}
        write(self.folder, resealed(swapped))
        self.part = self.dice.choice(["rank0", "rank1"])
        self.named = f"aimmerge/{self.part}.safetensors"

    def part_of_an_older_step(self) -> None:
        self.part = self.dice.choice(["rank0", "rank1"])
        self.named = f"aimmerge/{self.part}.safetensors"
        write(self.folder, resealed({**self.files, self.named: self.others[0][self.named]}))

    def part_without_a_tree(self) -> None:
        self.named = "aimmerge/rank0.safetensors"
        shutil.rmtree(self.folder)
        write_part(self.folder, "rank0", {"step": 9, "tree": self.dice.choice([None, [], 3])})
        made = read(self.folder)["aimmerge.part/rank0.safetensors"]
        write(self.folder, resealed({**self.files, self.named: made}))
        self.part = "rank0"

    def part_of_a_larger_world(self) -> None:
        more = "aimmerge/rank2.safetensors"
        write(self.folder, resealed({**self.files, more: self.others[1][more]}))
        self.named = MANIFEST

    def part_less(self) -> None:
        less = dict(self.files)
        del less[f"aimmerge/rank{self.dice.randrange(2)}.safetensors"]
        write(self.folder, resealed(less))
        self.named = MANIFEST


FALSE = [
    CheckpointMutant.renamed, CheckpointMutant.elsewhere, CheckpointMutant.other_info,
    CheckpointMutant.parts_swapped, CheckpointMutant.part_of_an_older_step,
    CheckpointMutant.part_of_a_larger_world, CheckpointMutant.part_less,
    CheckpointMutant.part_without_a_tree,
]  # fmt: skip
