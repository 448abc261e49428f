"""The rooms of ``training_overhead.py``: what a whole training step costs per arm."""
