"""Columns, groups and tables."""
