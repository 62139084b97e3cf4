"""Losses as pure functions of plain tensors, most of them one value a row."""
