"""Schema -> embedding tables, planned and sharded over ranks."""
