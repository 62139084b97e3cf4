"""Content vectors: columns of vectors, and tables that begin with vectors of a file."""
