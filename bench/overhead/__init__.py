"""The rooms of ``merge_overhead.py``: what a merge costs per backbone."""
