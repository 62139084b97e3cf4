"""Comparison of two served versions by a log of exposures and clicks (A/B test)."""
