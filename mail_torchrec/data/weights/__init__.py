"""Weights of rows and of list entries, and positions."""
