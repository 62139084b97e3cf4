"""Training and evaluation: assembly, steps, optimizers, checkpointed state, run directory."""
