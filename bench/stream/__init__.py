"""The rooms of ``real_stream.py``: a language model on a stream of tasks."""
