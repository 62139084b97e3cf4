"""What the stages of ``tools/gpu_check.py`` measure; each module has ``check(run)``."""
