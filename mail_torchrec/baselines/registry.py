"""Baselines by name."""

from mail_torchrec.baselines.mean_fill import MeanFill, MeanFillSettings
from mail_torchrec.towers.inputs import InputShapes

BaselineSettings = MeanFillSettings


def build_baseline(settings: BaselineSettings, shapes: InputShapes) -> MeanFill:
    """The baseline that ``settings`` are for.

    Args:
        settings: its name and options.
        shapes: of the ranking tower's inputs.
    """
    return MeanFill(settings, shapes.sequences)
