"""Changes between two exported versions: their files, and the version that they make of a base."""
