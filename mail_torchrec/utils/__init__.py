"""Helpers that know nothing of models: logging, spans, locks, atomically written folders."""
