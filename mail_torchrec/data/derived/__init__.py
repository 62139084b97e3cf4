"""Derived columns: crosses, parts of times, and ages."""
