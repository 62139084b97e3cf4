"""Event logs and catalogues joined point in time into impression rows with aligned histories."""
