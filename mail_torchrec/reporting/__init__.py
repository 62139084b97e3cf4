"""Reports: runs side by side, plots, and Markdown rendered as HTML."""
