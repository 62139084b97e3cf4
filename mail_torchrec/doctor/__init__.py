"""Checks of an installation: versions, devices, and for a mismatch the cause and the fix."""
