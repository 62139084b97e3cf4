"""Vocabularies and scales, fitted by all ranks together."""
