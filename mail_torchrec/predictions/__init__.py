"""Scored rows as Parquet files: written by all ranks, joined and read by row."""
