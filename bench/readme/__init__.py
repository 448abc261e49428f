"""The rooms of ``readme_tables.py``: one file per block of the README, and what they share."""
