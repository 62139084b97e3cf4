"""Zero-shot tower: virtual behaviours from attributes."""
