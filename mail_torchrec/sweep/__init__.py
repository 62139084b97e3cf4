"""Sweeps: many trainings of one configuration, whose settings are searched by Optuna."""
