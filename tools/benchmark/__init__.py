"""Measures training speed, for ``tools/bench.py``."""
