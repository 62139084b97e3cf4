"""Where the time of a training goes: profiled steps, and what bounded a run."""
