"""Published models: exports and deltas in an object store, and servers that follow them."""
