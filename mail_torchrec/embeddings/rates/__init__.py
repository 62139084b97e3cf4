"""Rates of a machine as measured, and the times of shards by them."""
