"""Reports: HTML pages, plots, runs side by side."""
