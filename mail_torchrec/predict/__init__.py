"""Scoring by finished runs: evaluation and predictions."""
