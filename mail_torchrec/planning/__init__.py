"""What-if sharding: will the tables fit, how fast would it be, what would help."""
