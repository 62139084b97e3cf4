"""Boosted trees' estimate, before any training, of what helps new users and new items."""
