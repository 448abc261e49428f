"""+IFM, an ablation of AIMMerging: its schedule, with the masks of Recurrent-KIF for alpha."""

from __future__ import annotations

from aimmerge_fast.cl.methods.kif import EntryWise


class ImportanceFusion(EntryWise):
    """Merges when AIMMerging would; entries are weighted by their importance, not by Eq. 8."""

    label = "AIMMerging + IFM"
    summary = "ablation: entries weighted by importance instead of Eq. 8"
