"""Checkpoints: staged, written in the background, published whole or not at all; read back under any plan."""
