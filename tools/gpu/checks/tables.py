"""Imports, and each fused optimizer of a sharded table against float64.

A pooled and an unpooled table are sharded as a run shards them, and updated by random gradients.
"""

import platform
import time
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mail_torchrec.distributed.process_group import process_group
from mail_torchrec.embeddings.settings import TableOptimizerSettings
from mail_torchrec.embeddings.sharding import build_sharders
from tools.benchmark.machine_limits import machine_limits
from tools.gpu.checks.exact_optimizers import ExactTable
from tools.gpu.stage import StageRun

_ROWS, _DIM, _BAGS, _STEPS = 500, 32, 300, 4
_BETAS = (0.9, 0.95)
_TOLERANCE = 1e-5
_ON_CPU: tuple[dict[str, Any], ...] = (
    {"name": "sgd"},
    {"name": "adagrad"},
    {"name": "rowwise_adagrad"},
    {"name": "adagrad", "max_gradient": 0.5},
)
_ON_CUDA: tuple[dict[str, Any], ...] = (
    {"name": "adam"},
    {"name": "partial_rowwise_adam"},
    {"name": "adam", "weight_decay": 0.1},
    {"name": "partial_rowwise_adam", "weight_decay": 0.1},
    {"name": "rowwise_adagrad", "weight_decay": 0.1},
    {"name": "adam", "max_gradient": 0.5},
)


def check(run: StageRun) -> None:
    """Records versions, the time of the other imports, the machine's limits and each optimizer."""
    start = time.perf_counter()
    import_module("mail_torchrec.train.trainer")
    packages = ("fbgemm-gpu", "fbgemm-gpu-cpu", "torchrec")
    versions = {name: found for name in packages if (found := _version(name))}
    versions |= {"torch": torch.__version__, "python": platform.python_version()}
    run.record("versions", versions)
    run.record("trainer import seconds", time.perf_counter() - start)
    with process_group(run.device) as device:
        on_cuda = device.type == "cuda"
        name = torch.cuda.get_device_name(device) if on_cuda else "no GPU"
        run.record("device", name, text=f"{name}, torch {torch.__version__}")
        cases = (*_ON_CPU, *(_ON_CUDA if on_cuda else ()))
        errors = {}
        for case in cases:
            label = ", ".join(map(str, case.values()))
            errors[label] = error = optimizer_error(case, device)
            run.record(label, error, ok=error <= _TOLERANCE)
        worst = max(errors, key=lambda label: errors[label])
        text = f"{len(cases)} table optimizers, the worst ({worst}) {errors[worst]:.0e} off float64"
        run.record("worst", worst, text=text)
        limits = machine_limits(device, small=run.small or not on_cuda)
        copy, product = limits["copy"] / 1e12, limits["gemm_bfloat16"] / 1e12
        rates = f"copies {copy:.2f} TB/s, bf16 {product:.0f} TFLOP/s"
        run.record("limits", limits, text=rates if on_cuda else "")


def optimizer_error(case: dict[str, Any], device: torch.device) -> float:
    """Trains two sharded tables some steps, and compares them with float64.

    Args:
        case: settings of the tables' optimizer.
        device: of this process, which is in a process group.

    Returns:
        The norm of the difference over the norm of all that training changed; the larger one of
        both tables, infinite where it is not a number.
    """
    optimizer = TableOptimizerSettings(**{"learning_rate": 0.05, "eps": 1e-6} | case)
    tables = _Tables()
    sharders = build_sharders(optimizer, _BETAS, device)
    sharded = DistributedModelParallel(
        tables, device=device, sharders=sharders, init_data_parallel=False
    )
    random = np.random.default_rng(1)
    for weights in _local_weights(sharded):
        start = torch.from_numpy(random.normal(size=(_ROWS, _DIM)).astype(np.float32))
        with torch.no_grad():
            weights.copy_(start)
    before = [weights.double().cpu().numpy() for weights in _local_weights(sharded)]
    exact = [ExactTable(weights.copy(), optimizer, _BETAS) for weights in before]
    for _ in range(_STEPS):
        _step(sharded, exact, optimizer, random, device)
    errors = [
        np.linalg.norm(weights.double().cpu().numpy() - table.weights_RD)
        / np.linalg.norm(table.weights_RD - start)
        for weights, table, start in zip(_local_weights(sharded), exact, before, strict=True)
    ]
    return max(float(error) if np.isfinite(error) else float("inf") for error in errors)


class _Tables(nn.Module):
    """A pooled table (``bags``) and an unpooled one (``ids``)."""

    def __init__(self) -> None:
        super().__init__()
        shape: dict[str, Any] = {"num_embeddings": _ROWS, "embedding_dim": _DIM}
        bags = EmbeddingBagConfig(name="bags", feature_names=["bag"], **shape)
        ids = EmbeddingConfig(name="ids", feature_names=["id"], **shape)
        meta = torch.device("meta")
        self.pooled = EmbeddingBagCollection(tables=[bags], device=meta)
        self.unpooled = EmbeddingCollection(tables=[ids], device=meta)

    def forward(
        self, bags: KeyedJaggedTensor, ids: KeyedJaggedTensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns sums ``[bags, D]`` and vectors ``[ids, D]``."""
        return self.pooled(bags).values(), self.unpooled(ids)["id"].values()


def _local_weights(sharded: nn.Module) -> Iterator[torch.Tensor]:
    """Yields the whole weights of both tables, which this process has alone."""
    state = sharded.state_dict()
    for key in ("pooled.embedding_bags.bags.weight", "unpooled.embeddings.ids.weight"):
        [shard] = state[key].local_shards()
        yield shard.tensor


def _step(
    sharded: nn.Module,
    exact: list[ExactTable],
    optimizer: TableOptimizerSettings,
    random: np.random.Generator,
    device: torch.device,
) -> None:
    """Updates all tables by the same random ids and gradients; some bags are empty."""
    lengths = random.integers(0, 4, _BAGS)
    rows = [random.integers(0, _ROWS // 2, lengths.sum()) for _ in exact]
    gradients = [random.normal(size=(size, _DIM)) for size in (_BAGS, lengths.sum())]
    in_bags, alone = rows
    found = sharded(_jagged("bag", in_bags, lengths, device), _jagged("id", alone, lengths, device))
    losses = [
        (values * torch.from_numpy(gradient.astype(np.float32)).to(device)).sum()
        for values, gradient in zip(found, gradients, strict=True)
    ]
    sum(losses, torch.zeros((), device=device)).backward()
    gradients = [gradient.astype(np.float32).astype(np.float64) for gradient in gradients]
    if optimizer.max_gradient is not None:
        most = optimizer.max_gradient
        gradients = [gradient.clip(-most, most) for gradient in gradients]
    gradients[0] = np.repeat(gradients[0], lengths, axis=0)
    for table, of_rows, gradient in zip(exact, rows, gradients, strict=True):
        summed = np.zeros_like(table.weights_RD)
        np.add.at(summed, of_rows, gradient)
        table.update(summed, of_rows)


def _jagged(key: str, rows: Any, lengths: Any, device: torch.device) -> KeyedJaggedTensor:
    """Makes the ids of one feature."""
    values, sizes = torch.from_numpy(rows), torch.from_numpy(lengths)
    return KeyedJaggedTensor([key], values, lengths=sizes).to(device)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
