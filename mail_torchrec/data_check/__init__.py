"""Drafts of configurations from Parquet files, and checks of data without training."""
