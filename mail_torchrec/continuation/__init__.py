"""Records of runs that continue others: their parents, and what these scored on new rows."""
