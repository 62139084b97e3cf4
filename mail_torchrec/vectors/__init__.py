"""User and item vectors for retrieval, and an approximate index of the items; imports no torch."""
