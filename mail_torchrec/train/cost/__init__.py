"""Cost of a run: memory and arithmetic, estimated for the planner and measured."""
