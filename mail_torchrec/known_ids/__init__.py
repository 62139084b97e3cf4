"""Ids of the tables of runs and exported models, to be shown and compared."""
