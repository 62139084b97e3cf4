"""Validation on the way: when a model is evaluated, which step was the best, and when to stop."""
