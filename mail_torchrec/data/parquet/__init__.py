"""Parquet files and Arrow columns as NumPy arrays."""
