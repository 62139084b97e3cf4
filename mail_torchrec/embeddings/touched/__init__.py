"""Rows that training touches, recorded on the rank that owns them."""
