"""Baselines by name."""

from typing import Annotated

from pydantic import Field

from mail_torchrec.baselines.filler import Filler
from mail_torchrec.baselines.llae import LLAE, LLAESettings
from mail_torchrec.baselines.mean_fill import MeanFill, MeanFillSettings
from mail_torchrec.baselines.meta_emb import MetaEmbSettings
from mail_torchrec.towers.inputs import InputShapes

BaselineSettings = Annotated[
    MeanFillSettings | LLAESettings | MetaEmbSettings, Field(discriminator="name")
]


def build_filler(
    settings: BaselineSettings | None, shapes: InputShapes, num_numeric: int
) -> Filler | None:
    """The baseline that ``settings`` are for, where it is one that makes behaviours.

    Args:
        settings: its name and options.
        shapes: of the ranking tower's inputs.
        num_numeric: numeric attributes.
    """
    if isinstance(settings, MeanFillSettings):
        return MeanFill(settings, shapes.sequences)
    if isinstance(settings, LLAESettings):
        return LLAE(
            settings, shapes.sequences, shapes.num_attributes * shapes.attribute_dim + num_numeric
        )
    return None
