"""FuxiCTR's DMR on the same rows, in an environment of its own."""
