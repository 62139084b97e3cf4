"""New items: the rule for them, and the simulated cold start that withholds items' ids."""
