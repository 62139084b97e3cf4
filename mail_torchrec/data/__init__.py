"""Reads Parquet files as batches."""
