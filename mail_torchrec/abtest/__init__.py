"""Two versions that served users side by side, compared by what the users did."""
