"""Ranking towers and the zero-shot tower: dense modules on plain tensors."""
