"""Parquet files -> batches."""
