"""Optimizer groups of a run: named sets of parameters, each with its optimizer.

The method has two optimizers: G_A trains the zero-shot tower, G_B trains the ranking tower and the
tables. Groups are the one list that a training step, checkpoints, schedules, gradient clipping and
freezing go over.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer, KeyedOptimizerWrapper

from mail_torchrec.train.settings import TrainSettings

FUSED, TABLES, RANKING, ZERO_SHOT = "fused", "tables", "ranking", "zero_shot"
TABLE_GROUPS = (FUSED, TABLES)
"""Groups of the embedding tables: sharded tables with a fused optimizer, or unsharded tables."""

_GROUP_OF_PREFIX = {
    "towers.zero_shot.": ZERO_SHOT,
    "towers.meta_emb.": ZERO_SHOT,
    "towers.ranking.": RANKING,
    "towers.multi_task.": RANKING,
    "towers.cold_ranking.": RANKING,
    "towers.cold_multi_task.": RANKING,
    "pooled_tables.": TABLES,
    "unpooled_tables.": TABLES,
}


@dataclass(frozen=True)
class OptimizerGroup:
    """Parameters that one optimizer trains."""

    name: str
    """``fused``, ``tables``, ``ranking`` or ``zero_shot``; part of the keys of checkpoints."""
    optimizer: KeyedOptimizer
    is_fused: bool = False
    """True where the backward pass updates the parameters, and they have no gradients."""

    @property
    def parameters(self) -> dict[str, torch.Tensor]:
        """Parameter name -> parameter of any shape, a ``ShardedTensor`` in a fused group."""
        return dict(self.optimizer.params)

    @property
    def state(self) -> dict[str, dict[str, torch.Tensor]]:
        """Parameter name -> name of the state -> tensor of any shape."""
        found: dict[str, dict[str, torch.Tensor]] = self.optimizer.state_dict()["state"]
        return {
            parameter: {name: value for name, value in state.items() if value is not None}
            for parameter, state in found.items()
        }


class OptimizerGroups(CombinedOptimizer):
    """All optimizer groups of a run, stepped together.

    Args:
        groups: in the order in which they step; names are unique.
    """

    def __init__(self, groups: list[OptimizerGroup]) -> None:
        super().__init__([(group.name, group.optimizer) for group in groups])
        self.groups = {group.name: group for group in groups}

    def __iter__(self) -> Iterator[OptimizerGroup]:
        return iter(self.groups.values())


def build_optimizer_groups(
    model: nn.Module,
    settings: TrainSettings,
    *,
    zero_shot_scale: float,
    fused: KeyedOptimizer | None,
) -> OptimizerGroups:
    """Builds the optimizer groups of a model; groups without parameters are left out.

    Args:
        model: sharded (with ``fused``, the optimizer of its tables) or unsharded.
        settings: learning rates.
        zero_shot_scale: factor of the zero-shot tower's learning rate.
        fused: optimizer of sharded tables; None where tables are not sharded.

    Raises:
        ValueError: no group is known for a parameter, or the tables' optimizer has no unfused form.
    """
    parameters = dense_parameters(model, fused)
    groups = [] if fused is None else [OptimizerGroup(FUSED, fused, is_fused=True)]
    if ranking := parameters[RANKING]:
        groups.append(OptimizerGroup(RANKING, _adam(ranking, settings, 1.0)))
    if zero_shot := parameters[ZERO_SHOT]:
        groups.append(OptimizerGroup(ZERO_SHOT, _adam(zero_shot, settings, zero_shot_scale)))
    if tables := parameters[TABLES]:
        wrapper = KeyedOptimizerWrapper(tables, lambda params: _table_optimizer(params, settings))
        groups.append(OptimizerGroup(TABLES, wrapper))
    for group in groups:
        if not group.is_fused:
            _materialise(group.optimizer)
    return OptimizerGroups(groups)


def dense_parameters(
    model: nn.Module, fused: KeyedOptimizer | None
) -> dict[str, dict[str, nn.Parameter]]:
    """Assigns every trainable parameter without a fused optimizer to a group.

    Other ranks' parts of sharded tables stand in the model as empty parameters, and belong to no
    group.

    Returns:
        Group name -> parameter name -> parameter of any shape.

    Raises:
        ValueError: a parameter belongs to a module that no group names.
    """
    groups: dict[str, dict[str, nn.Parameter]] = {RANKING: {}, ZERO_SHOT: {}, TABLES: {}}
    sharded = set(fused.params) if fused is not None else set()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and name not in sharded and parameter.numel():
            groups[_group_of(name)][name] = parameter
    return groups


def _group_of(name: str) -> str:
    for prefix, group in _GROUP_OF_PREFIX.items():
        if name.startswith(prefix):
            return group
    raise ValueError(
        f"parameter '{name}' should belong to a module of an optimizer group "
        f"({', '.join(_GROUP_OF_PREFIX)}), received none of these; name its module in "
        "train/optimizers.py, or set requires_grad=False"
    )


@torch.no_grad()
def _materialise(optimizer: KeyedOptimizer) -> None:
    """Creates the optimizer's state, which torch creates at the first step only.

    A checkpoint is read into the state that is there, and each key is checked.
    """
    optimizer.init_state()  # a step of zero gradients, which moves nothing
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor):
                value.zero_()
    optimizer.zero_grad()


def _adam(
    parameters: dict[str, nn.Parameter], settings: TrainSettings, scale: float
) -> KeyedOptimizerWrapper:
    learning_rate = settings.learning_rate * scale
    return KeyedOptimizerWrapper(
        parameters,
        lambda params: torch.optim.Adam(
            params, lr=learning_rate, betas=settings.betas, eps=settings.eps, fused=True
        ),
    )


def _table_optimizer(
    parameters: list[nn.Parameter], settings: TrainSettings
) -> torch.optim.Optimizer:
    """Builds the unfused form of the tables' optimizer.

    Raises:
        ValueError: there is none.
    """
    tables = settings.tables
    if tables.name == "adam":
        return torch.optim.Adam(
            parameters, lr=tables.learning_rate, betas=settings.betas, eps=tables.eps, foreach=True
        )
    if tables.name == "adagrad":
        return torch.optim.Adagrad(
            parameters, lr=tables.learning_rate, eps=tables.eps, foreach=True
        )
    if tables.name == "sgd":
        return torch.optim.SGD(parameters, lr=tables.learning_rate, foreach=True)
    raise ValueError(
        "train.tables.name: unsharded tables train with sgd, adagrad or adam, received "
        f"'{tables.name}'; or shard them"
    )
