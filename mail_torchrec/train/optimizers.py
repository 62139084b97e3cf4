"""G_A and G_B: whose optimizer trains which parameters (method: two optimizers, one wall)."""

import torch
from torch import nn
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer, KeyedOptimizerWrapper

from mail_torchrec.embeddings.sharding import TableOptimizerSettings
from mail_torchrec.train.settings import TrainSettings

_ZERO_SHOT = ("towers.zero_shot.", "towers.meta_emb.")
_RANKING = (
    "towers.ranking.",
    "towers.multi_task.",
    "towers.ranking_of_new.",
    "towers.multi_task_of_new.",
)


def dense_parameters(
    model: nn.Module, fused: KeyedOptimizer | None
) -> dict[str, dict[str, nn.Parameter]]:
    """Optimizer name -> the trainable parameters that it owns: ``zero_shot`` (G_A), ``ranking`` (G_B) and, unsharded, ``tables`` (G_B).

    Sharded tables are not among them: ``fused``, their optimizer, works in the backward pass. What
    other ranks hold of them stands here as an empty parameter.
    """
    groups: dict[str, dict[str, nn.Parameter]] = {"zero_shot": {}, "ranking": {}, "tables": {}}
    sharded = set(fused.params) if fused is not None else set()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and name not in sharded and parameter.numel():
            group = (
                "zero_shot"
                if name.startswith(_ZERO_SHOT)
                else "ranking"
                if name.startswith(_RANKING)
                else "tables"
            )
            groups[group][name] = parameter
    return groups


def build_optimizer(
    model: nn.Module,
    settings: TrainSettings,
    *,
    zero_shot_scale: float,
    fused: KeyedOptimizer | None,
) -> CombinedOptimizer:
    """All optimizers of a run, stepped together.

    Args:
        model: sharded (with ``fused``, the optimizer of its tables) or whole.
        settings: learning rates.
        zero_shot_scale: the zero-shot tower's learning rate over the ranking tower's.
        fused: the sharded tables' optimizer.
    """
    groups = dense_parameters(model, fused)
    optimizers: list[tuple[str, KeyedOptimizer]] = [] if fused is None else [("fused", fused)]
    if groups["ranking"]:
        optimizers.append(("ranking", _adam(groups["ranking"], settings, 1.0)))
    if groups["zero_shot"]:
        optimizers.append(("zero_shot", _adam(groups["zero_shot"], settings, zero_shot_scale)))
    if groups["tables"]:
        optimizers.append(
            (
                "tables",
                KeyedOptimizerWrapper(
                    groups["tables"], lambda params: _table_optimizer(params, settings)
                ),
            )
        )
    for name, optimizer in optimizers:
        if name != "fused":
            _materialise(optimizer)
    return CombinedOptimizer(optimizers)


@torch.no_grad()
def _materialise(optimizer: KeyedOptimizer) -> None:
    """Makes the state that torch makes at the first step only: a checkpoint is read into what is there, and each key is checked."""
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
    """The dense counterpart of a fused table optimizer.

    Raises:
        ValueError: there is none.
    """
    tables: TableOptimizerSettings = settings.tables
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
