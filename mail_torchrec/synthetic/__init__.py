"""A synthetic click log whose ground truth is known."""
