"""Experiment trackers: a run's settings, curves, final metrics and files in MLflow or elsewhere."""
