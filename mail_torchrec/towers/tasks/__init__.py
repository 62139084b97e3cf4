"""Heads of further tasks on a ranking tower: any number of labels, and experts that tasks share."""
