"""Drift of virtual behaviours: two-sample statistics, and the vectors kept beside a model."""
