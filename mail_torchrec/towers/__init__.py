"""Plain dense modules on plain tensors: the zero-shot tower and the ranking towers."""
