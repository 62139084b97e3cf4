"""Assignment of parameters to optimizer groups, by the module that holds them."""

from collections.abc import Collection, Iterator

from torch import nn
from torchrec.optim.keyed import KeyedOptimizer

from mail_torchrec.optim.settings import RANKING, ZERO_SHOT

FUSED, TABLES = "fused", "tables"
TABLE_GROUPS = (FUSED, TABLES)
"""Groups of the embedding tables: sharded tables with a fused optimizer, or unsharded tables."""

_GROUP_OF_PREFIX = {
    "towers.zero_shot.": ZERO_SHOT,
    "towers.meta_emb.": ZERO_SHOT,
    "towers.filler.": ZERO_SHOT,
    "towers.virtual_items.": ZERO_SHOT,
    "towers.ranking.": RANKING,
    "towers.multi_task.": RANKING,
    "towers.cold_ranking.": RANKING,
    "towers.cold_multi_task.": RANKING,
    "towers.vector_fields.": RANKING,
    "towers.projections.": RANKING,
    "pooled_tables.": TABLES,
    "unpooled_tables.": TABLES,
}


def dense_parameters(
    model: nn.Module, fused: KeyedOptimizer | None, frozen: Collection[str] = ()
) -> dict[str, dict[str, nn.Parameter]]:
    """Assigns every parameter without a fused optimizer to a group.

    Other ranks' parts of sharded tables stand in the model as empty parameters, and belong to no
    group.

    Args:
        model: sharded or not.
        fused: optimizer of sharded tables; None where tables are not sharded.
        frozen: names of parameters that the configuration freezes. They keep their place in a
            group, and their state in checkpoints, so that a resumed run may train them again.

    Returns:
        Group name -> parameter name -> parameter of any shape.

    Raises:
        ValueError: a parameter belongs to a module that no group names.
    """
    groups: dict[str, dict[str, nn.Parameter]] = {RANKING: {}, ZERO_SHOT: {}, TABLES: {}}
    sharded = set(fused.params) if fused is not None else set()
    for name, parameter in model.named_parameters():
        is_trained = parameter.requires_grad or name in frozen
        if is_trained and name not in sharded and parameter.numel():
            groups[_group_of(name)][name] = parameter
    return groups


def modules_of_group(model: nn.Module, group: str) -> Iterator[nn.Module]:
    """Yields the modules of a dense group, the outermost ones.

    Args:
        model: without wrappers.
        group: ``ranking`` or ``zero_shot``.
    """
    for name, module in model.named_modules():
        if _GROUP_OF_PREFIX.get(f"{name}.") == group:
            yield module


def _group_of(name: str) -> str:
    for prefix, group in _GROUP_OF_PREFIX.items():
        if name.startswith(prefix):
            return group
    raise ValueError(
        f"parameter '{name}' should belong to a module of an optimizer group "
        f"({', '.join(_GROUP_OF_PREFIX)}), received none of these; name its module in "
        "optim/assignment.py, or set requires_grad=False"
    )
