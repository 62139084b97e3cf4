"""Published cold-start baselines, which stand in the zero-shot tower's place."""
