"""Curves of a reproduction: what each method wins over the share of cold training users."""
