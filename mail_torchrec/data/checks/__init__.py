"""Checks of values before they are trained on or evaluated."""
