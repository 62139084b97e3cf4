"""mail_torchrec: sharded training of click and conversion models with cold-start built in."""

__version__ = "0.1.0"
"""The version, as in pyproject.toml, for sources that are not installed."""
