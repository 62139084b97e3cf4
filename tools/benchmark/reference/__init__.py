"""A direct reference of MAIL-DMR in plain PyTorch, to measure the trainer's speed against."""
