"""Tables of an exported model: their description, and rows that are not in the order of ids."""
