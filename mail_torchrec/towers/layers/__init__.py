"""Layers of the towers, and the behaviour sequences that they work on."""
