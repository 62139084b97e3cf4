"""Frozen tables and towers: no gradient, no update, and running statistics that stay.

A frozen table is alone with other frozen ones in its FBGEMM kernel, of learning rate 0, whose
weights need no gradient: its backward pass is never called, so that neither its optimizer's state
nor weight decay move anything. A tower is frozen as usual in torch, and stays in evaluation mode:
without dropout, and with the running statistics of its batch normalisations.
"""

from collections.abc import Iterable

from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import nn

from mail_torchrec.optim.assignment import TABLES, dense_parameters, modules_of_group
from mail_torchrec.optim.settings import ALL_TABLES


def freeze_parameters(
    model: nn.Module, freeze: Iterable[str], tables: dict[str, str]
) -> frozenset[str]:
    """Freezes parameters of a model whose tables are not sharded yet, or never will be.

    Args:
        model: of which no parameter is sharded.
        freeze: setting ``train.freeze``.
        tables: parameter name -> name of its table in the schema.

    Returns:
        The names of the frozen parameters.
    """
    freeze = set(freeze)
    if not freeze:
        return frozenset()
    groups = dense_parameters(model, None)
    names = {name for group in freeze & groups.keys() for name in groups[group]}
    names |= {name for name in groups[TABLES] if f"{ALL_TABLES}.{tables[name]}" in freeze}
    for name in names:
        parameter = model.get_parameter(name)
        parameter.requires_grad_(False)
        if name in groups[TABLES]:
            # TorchRec groups tables by these options, which a sharder's own ones give way to.
            parameter._optimizer_kwargs = [{"learning_rate": 0.0}]
    return frozenset(names)


def freeze_sharded_tables(model: nn.Module) -> None:
    """Ends the gradients of the kernels that hold frozen tables.

    TorchRec registers its lookups, which hold the kernels, nowhere as modules of the model.
    """
    for sharded in model.modules():
        for lookup in getattr(sharded, "_lookups", ()):
            for module in lookup.modules():
                if isinstance(module, SplitTableBatchedEmbeddingBagsCodegen):
                    module.requires_grad_(module.get_learning_rate() > 0)


def frozen_modules(model: nn.Module, freeze: Iterable[str]) -> list[nn.Module]:
    """Lists the modules that stay in evaluation mode.

    Args:
        model: without wrappers.
        freeze: setting ``train.freeze``.
    """
    return [module for group in freeze for module in modules_of_group(model, group)]
