"""Optimization: parameter groups, schedules, clipping, accumulation, averages, frozen parts."""
