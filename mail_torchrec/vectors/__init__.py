"""User and item vectors of an exported model, in files and in an index, for the retrieval before the ranking."""
