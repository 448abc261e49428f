"""``python3 -m aimmerge_fast.cli``: the ``aimmerge`` command, for ``torchrun -m``."""

from __future__ import annotations

from aimmerge_fast.cli import main

main()
