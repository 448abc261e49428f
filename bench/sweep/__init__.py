"""The rooms of ``merge_sweep.py``: how a merge grows with entries and with tensors."""
