"""AUC, GAUC and the scores they are computed from."""
