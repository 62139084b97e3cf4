"""Embedding tables of a schema, planned and sharded over ranks."""
