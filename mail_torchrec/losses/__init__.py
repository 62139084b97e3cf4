"""Losses as pure functions of plain tensors, one value a row where a row has one."""
