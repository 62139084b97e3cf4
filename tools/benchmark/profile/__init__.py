"""Profiles of training steps: operators by group, span and module, and what bounds a step."""
