"""Checksums of the files of a run and of a checkpoint, and records that grow."""
