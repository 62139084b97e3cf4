"""Building of the optimizer groups of a model."""

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.optim.keyed import KeyedOptimizer, KeyedOptimizerWrapper

from mail_torchrec.optim.assignment import FUSED, TABLES, dense_parameters
from mail_torchrec.optim.ema import AveragedWeights, batch_norm_statistics
from mail_torchrec.optim.groups import OptimizerGroup, OptimizerGroups
from mail_torchrec.optim.settings import RANKING, ZERO_SHOT, OptimizerSettings


def build_optimizer_groups(
    model: nn.Module,
    settings: OptimizerSettings,
    *,
    zero_shot_scale: float,
    fused: KeyedOptimizer | None,
    frozen: Collection[str] = (),
) -> OptimizerGroups:
    """Builds the optimizer groups of a model; groups without parameters are left out.

    Args:
        model: sharded (with ``fused``, the optimizer of its tables) or unsharded.
        settings: learning rates and all else.
        zero_shot_scale: factor of the zero-shot tower's learning rate.
        fused: optimizer of sharded tables; None where tables are not sharded.
        frozen: names of parameters that the configuration freezes.

    Raises:
        ValueError: no group is known for a parameter, or the tables' optimizer has no unfused form.
    """
    parameters = dense_parameters(model, fused, frozen)
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
    return OptimizerGroups(groups, settings, _averages(model, groups, settings))


def _averages(
    model: nn.Module, groups: Iterable[OptimizerGroup], settings: OptimizerSettings
) -> AveragedWeights | None:
    """Makes the averages of the dense weights, where the settings ask for them."""
    if settings.ema is None:
        return None
    dense: dict[str, Tensor] = {}
    for group in groups:
        if group.is_dense:
            dense |= group.parameters
    unwrapped = getattr(model, "module", model)
    return AveragedWeights(dense | batch_norm_statistics(unwrapped), settings.ema)


@torch.no_grad()
def _materialise(optimizer: KeyedOptimizer) -> None:
    """Creates the optimizer's state, which torch creates at the first step only.

    A checkpoint is read into the state that is there, and each key is checked. Frozen parameters
    have a state too, so that they can be trained in a resumed run.
    """
    before = [parameter.clone() for parameter in optimizer.params.values()]
    for parameter in optimizer.params.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter, value in zip(optimizer.params.values(), before, strict=True):
        parameter.copy_(value)  # weight decay moved it
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor):
                value.zero_()
    optimizer.zero_grad()


def _adam(
    parameters: dict[str, nn.Parameter], settings: OptimizerSettings, scale: float
) -> KeyedOptimizerWrapper:
    options: dict[str, Any] = {
        "lr": settings.learning_rate * scale,
        "betas": settings.betas,
        "eps": settings.eps,
        "fused": True,
    }
    if not settings.weight_decay:
        return KeyedOptimizerWrapper(parameters, lambda params: torch.optim.Adam(params, **options))

    def adam_w(params: list[nn.Parameter]) -> torch.optim.Optimizer:
        decays = {settings.weight_decay: [value for value in params if value.dim() > 1]}
        decays[0.0] = [value for value in params if value.dim() <= 1]
        parts = [
            {"params": values, "weight_decay": decay} for decay, values in decays.items() if values
        ]
        return torch.optim.AdamW(parts, **options)

    return KeyedOptimizerWrapper(parameters, adam_w)


def _table_optimizer(
    parameters: list[nn.Parameter], settings: OptimizerSettings
) -> torch.optim.Optimizer:
    """Builds the unfused form of the tables' optimizer.

    Raises:
        ValueError: there is none.
    """
    tables = settings.tables
    options: dict[str, Any] = {"lr": tables.learning_rate, "foreach": True}
    if tables.max_gradient is not None:
        raise ValueError(
            "train.tables.max_gradient is a part of FBGEMM's fused optimizers, and unsharded "
            "tables have none; leave it out, or shard them (sharding.enabled=true)"
        )
    if tables.weight_decay and tables.name != "adam":
        raise ValueError(
            "train.tables.weight_decay: unsharded tables have it with train.tables.name=adam "
            f"alone, received '{tables.name}'; change one of the two"
        )
    if tables.name == "adam":
        options |= {"betas": settings.betas, "eps": tables.eps}
        if tables.weight_decay:
            return torch.optim.AdamW(parameters, weight_decay=tables.weight_decay, **options)
        return torch.optim.Adam(parameters, **options)
    if tables.name == "adagrad":
        return torch.optim.Adagrad(parameters, eps=tables.eps, **options)
    if tables.name == "sgd":
        return torch.optim.SGD(parameters, **options)
    raise ValueError(
        "train.tables.name: unsharded tables train with sgd, adagrad or adam, received "
        f"'{tables.name}'; or shard them"
    )
