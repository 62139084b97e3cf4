"""Limits of what clients can make the server hold and do."""
