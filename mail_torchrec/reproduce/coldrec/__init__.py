"""New items by the split and metrics of ColdRec: all items ranked for each user."""
