"""Estimates of sharding plans on any hardware, and suggestions for tables that do not fit."""
