"""Parquet to batches."""
