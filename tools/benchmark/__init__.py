"""The parts of ``tools/bench.py``, in the order in which a figure is made: rows, sides, measurements, judgement, report."""
