"""MAIL: the dense parts put together above the tables."""
