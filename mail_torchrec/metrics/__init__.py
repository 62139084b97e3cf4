"""AUC and GAUC, and the predictions that they are computed from."""
