"""Stages of ``tools/gpu_check.py``: each runs in a process of its own, under a time limit."""
