"""Other remedies for new users, to measure MAIL against: what stands in the zero-shot tower's place."""
