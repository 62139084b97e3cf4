"""The training loop and what surrounds it: optimizers, metrics, run directory."""
