"""Declarations of tower outputs (OutputSpec), read by export, servers and vector tools.

A ranking tower with vectors for retrieval declares them in a method ``output_specs()``; the
multi-task head, the zero-shot tower and the baselines have one too. The model's dense part puts the
declarations of its modules into one list (``model/mail.py``).
"""

from collections.abc import Mapping

from torch import nn

from mail_torchrec.towers.inputs import SequenceShape
from mail_torchrec.utils.output_spec import OutputSpec

CLICK_TASK = "ctr"
"""Task of the ranking tower's own logit."""


def probability_name(task: str) -> str:
    """Returns the output name of a task's probability, ``pctr`` for ``ctr``."""
    return f"p{task}"


def probability_spec(task: str, meaning: str) -> OutputSpec:
    """Declares the probability of a task for every candidate."""
    return OutputSpec(
        name=probability_name(task), axis="candidates", role="probability", meaning=meaning
    )


def click_spec() -> OutputSpec:
    """Declares the click probability, the sigmoid of the ranking tower's logit."""
    return probability_spec(CLICK_TASK, "probability of a click")


def virtual_behaviours_specs(sequences: Mapping[str, SequenceShape]) -> list[OutputSpec]:
    """Declares the virtual behaviours [users, T, D] of every sequence."""
    return [
        OutputSpec(
            name=f"{column}.virtual",
            axis="users",
            size=(shape.max_length, shape.dim),
            role="virtual_behaviours",
            column=column,
            meaning="virtual behaviours, oldest first, zeros for users who are not new",
        )
        for column, shape in sequences.items()
    ]


def vector_specs(column: str, user_dim: int, item_dim: int | None = None) -> list[OutputSpec]:
    """Declares the two vectors of a sequence whose dot product is the tower's relevance.

    Args:
        column: the behaviour sequence, the key in ``RankingOutput.vectors``.
        user_dim: width of the user vectors.
        item_dim: width of the item vectors; by default that of the user vectors.
    """
    return [
        OutputSpec(
            name=f"{column}.user",
            axis="users",
            size=(user_dim,),
            role="user_vector",
            column=column,
            meaning="the user's vector in the space of the item vectors",
        ),
        OutputSpec(
            name=f"{column}.item",
            axis="candidates",
            size=(user_dim if item_dim is None else item_dim,),
            role="item_vector",
            column=column,
            meaning="the item's vector; its product with the user's is the tower's relevance",
        ),
    ]


def declared_specs(module: nn.Module | None) -> list[OutputSpec]:
    """Returns what a module declares by ``output_specs()``; nothing if it has no such method."""
    declare = getattr(module, "output_specs", None)
    return [] if declare is None else list(declare())
