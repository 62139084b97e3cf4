"""Checkpoints: staged, written in the background, published atomically, read under any plan."""
