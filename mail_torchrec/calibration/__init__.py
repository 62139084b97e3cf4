"""Calibration of click probabilities: downsampled negatives, Platt and isotonic calibration."""
