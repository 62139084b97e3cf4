"""Chains of continued runs, day by day."""
