"""The paper's tables and figures on your data."""
