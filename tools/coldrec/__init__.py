"""Split and metrics of the benchmark ColdRec, and rows of it for this trainer."""
