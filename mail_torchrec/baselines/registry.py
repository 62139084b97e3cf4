"""Registry of cold-start baselines by name."""

from typing import Annotated

from pydantic import Field

from mail_torchrec.baselines.cvar import CVAR, CVARSettings
from mail_torchrec.baselines.filler import BehaviourFiller
from mail_torchrec.baselines.llae import LLAE, LLAESettings
from mail_torchrec.baselines.mean_fill import MeanFill, MeanFillSettings
from mail_torchrec.baselines.meta_emb import MetaEmbSettings
from mail_torchrec.baselines.mwuf import MWUF, MWUFSettings
from mail_torchrec.towers.inputs import InputShapes

BaselineSettings = Annotated[
    MeanFillSettings | LLAESettings | MetaEmbSettings | CVARSettings | MWUFSettings,
    Field(discriminator="name"),
]
"""Settings of one baseline, chosen by ``name``."""
GENERATORS = (MetaEmbSettings, CVARSettings, MWUFSettings)
"""Baselines with parameters that losses of their own train."""


def build_filler(
    settings: BaselineSettings | None, shapes: InputShapes, num_numeric: int
) -> BehaviourFiller | None:
    """Builds the baseline, if it is one that makes virtual behaviours.

    Args:
        settings: its name and options.
        shapes: of the ranking tower's inputs.
        num_numeric: numeric attributes.
    """
    if isinstance(settings, MeanFillSettings):
        return MeanFill(settings, shapes.sequences)
    num_attributes = shapes.num_attributes * shapes.attribute_dim + num_numeric
    if isinstance(settings, LLAESettings):
        return LLAE(settings, shapes.sequences, num_attributes)
    if isinstance(settings, CVARSettings):
        return CVAR(settings, shapes.sequences, num_attributes)
    if isinstance(settings, MWUFSettings):
        return MWUF(settings, shapes.sequences, num_attributes)
    return None
