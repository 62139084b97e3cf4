"""The torch-free side of an exported model: requests, manifest, scorer."""
