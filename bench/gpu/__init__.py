"""The rooms of ``gpu_check.sh``: one file per stage, and what they share.

Each runs alone too, from the root of the tree: ``PYTHONPATH=bench python3 -P -m gpu.sync``. With
``--device cpu`` a room runs what a CPU can stand in for, which tests the room and proves nothing
about a GPU; its file is then ``cpu_<stage>.json``.
"""
