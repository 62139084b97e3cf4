"""The tensors of a run: what a checkpoint holds of it, and how they come back under any plan."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorStorageMetadata

from mail_torchrec.checkpoint.staging import State, full_size
from mail_torchrec.checkpoint.storage import read_tensors, saved_tensors
from mail_torchrec.distributed.collectives import rank, world_size
from mail_torchrec.train.assembly import Assembled

_MODEL, _OPTIMIZER, _RANDOM = "model.", "optimizer.", "random."


def model_state(assembled: Assembled) -> State:
    """Weights and buffers."""
    return {_MODEL + key: value for key, value in assembled.model.state_dict().items()}


def optimizer_state(assembled: Assembled) -> State:
    """Moments, sums and step counts, ``optimizer.PARAMETER.NAME``; of a sharded table, on the ranks that hold a part of it."""
    states = assembled.optimizer.state_dict()["state"]
    found = {
        f"{_OPTIMIZER}{parameter}.{name}": value
        for parameter, state in states.items()
        for name, value in state.items()
        if value is not None
    }
    assert all(isinstance(value, torch.Tensor | ShardedTensor) for value in found.values())
    return found


def random_state() -> State:
    """This rank's generators."""
    states = {f"{_RANDOM}{rank()}.cpu": torch.get_rng_state()}
    return states | (
        {f"{_RANDOM}{rank()}.cuda": torch.cuda.get_rng_state()}
        if torch.cuda.is_initialized()
        else {}
    )


def state_of(assembled: Assembled) -> State:
    """Everything; the tensors are the run's own, not copies."""
    return model_state(assembled) | optimizer_state(assembled) | random_state()


def load_model(assembled: Assembled, folder: Path) -> None:
    """Reads weights and buffers from a checkpoint.

    Raises:
        ValueError: they are another model's.
    """
    _load_model(assembled, folder, saved_tensors(folder))


def restore(
    assembled: Assembled, folder: Path, step: int, tables: dict[str, str], restart: set[str]
) -> None:
    """Reads everything from a checkpoint.

    Args:
        assembled: a model on its ranks.
        folder: the checkpoint.
        step: steps trained in it.
        tables: state-dict key -> table.
        restart: tables whose optimizer state is left as a new run has it.

    Raises:
        ValueError: on every rank; the weights are another model's, or some optimizer state does not
            fit the sharding here.
    """
    saved = saved_tensors(folder)
    _load_model(assembled, folder, saved)
    parameters = {
        f"{_OPTIMIZER}{group}.{key}.": table
        for group in ("fused", "tables")
        for key, table in tables.items()
    }
    keys = _Keys(parameters, restart)
    wanted = keys.kept(optimizer_state(assembled))
    model = model_state(assembled)
    faults = [fault for key, value in wanted.items() if (fault := _unfit(key, value, saved, model))]
    missing = set(
        keys.kept({key: None for key in saved if key.startswith(_OPTIMIZER)})
    ) - _of_all_ranks(set(wanted))
    faults += [f"{key} was saved and is not had here" for key in sorted(missing)]
    if faults := sorted(_of_all_ranks(set(faults))):
        raise ValueError(keys.refusal(folder, faults))
    read_tensors(wanted, folder, dist.group.WORLD)
    if hasattr(assembled.optimizer, "set_optimizer_step") and assembled.plan is not None:
        assembled.optimizer.set_optimizer_step(
            step
        )  # FBGEMM's Adams count steps outside their state
    _restore_random(folder, saved, step)


@dataclass(frozen=True)
class _Keys:
    """Which optimizer keys belong to which table."""

    parameters: dict[str, str]
    """How the keys of a table begin -> the table."""
    restart: set[str]

    def table(self, key: str) -> str | None:
        return next(
            (table for start, table in self.parameters.items() if key.startswith(start)), None
        )

    def kept(self, state: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in state.items() if self.table(key) not in self.restart}

    def refusal(self, folder: Path, faults: list[str]) -> str:
        tables = sorted({table for fault in faults if (table := self.table(fault)) is not None})
        remedy = (
            f"shard {', '.join(tables)} as in {folder / 'plan.json'} (sharding.tables), or begin "
            "their optimizer state anew with "
            f"checkpoint.restart_state=[{','.join(tables)}]; weights are kept"
        )
        return "\n  ".join(
            [
                f"the optimizer state in '{folder}' does not fit; "
                f"{remedy if tables else 'resume with its configuration'}:",
                *faults,
            ]
        )


def _load_model(
    assembled: Assembled, folder: Path, saved: dict[str, TensorStorageMetadata]
) -> None:
    state = model_state(assembled)
    there = {key: tuple(value.size) for key, value in saved.items() if key.startswith(_MODEL)}
    here = {key: tuple(full_size(value)) for key, value in state.items()}
    if faults := [
        f"{key}: {there.get(key, 'missing')} there, {here.get(key, 'missing')} here"
        for key in {**there, **here}
        if there.get(key) != here.get(key)
    ]:
        raise ValueError(
            f"'{folder}' does not hold this model's weights:\n  " + "\n  ".join(faults[:10])
        )
    read_tensors(state, folder, dist.group.WORLD)
    assembled.model.load_state_dict(
        {key.removeprefix(_MODEL): value for key, value in state.items()}
    )


def _unfit(
    key: str, value: Any, saved: dict[str, TensorStorageMetadata], model: State
) -> str | None:
    """Why a saved optimizer state cannot be read into this one."""
    if key not in saved:
        return f"{key} was not saved"
    there, here = tuple(saved[key].size), tuple(full_size(value))
    if there != here:
        return f"{key} has the size {there} there, {here} here"
    if (
        isinstance(value, ShardedTensor) and len(here) == 1
    ):  # a number a row and column shard: it has no meaning for other columns
        [weights] = [name for name in model if f".{name.removeprefix(_MODEL)}." in key]
        columns_there, columns_here = (
            _columns(saved[weights].chunks),
            _columns(_chunks(model[weights])),
        )
        if columns_there != columns_here:
            return f"{key} is of the columns {columns_there} there, {columns_here} here"
    return None


def _columns(chunks: list[ChunkStorageMetadata]) -> list[str]:
    return sorted({f"{chunk.offsets[1]}-{chunk.offsets[1] + chunk.sizes[1]}" for chunk in chunks})


def _chunks(table: ShardedTensor) -> list[ChunkStorageMetadata]:
    return [
        ChunkStorageMetadata(torch.Size(shard.shard_offsets), torch.Size(shard.shard_sizes))
        for shard in table.metadata().shards_metadata
    ]


def _restore_random(folder: Path, saved: dict[str, TensorStorageMetadata], step: int) -> None:
    """The generators as they were; on another number of ranks, new ones that depend on the step."""
    mine = random_state()
    same_ranks = (
        sum(key.startswith(_RANDOM) and key.endswith(".cpu") for key in saved) == world_size()
    )
    if not same_ranks or not mine.keys() <= saved.keys():
        torch.manual_seed(torch.initial_seed() + 1_000_003 * world_size() * step)
        return
    read_tensors(mine, folder, dist.group.WORLD)
    setters: dict[str, Callable[[torch.Tensor], None]] = {
        "cpu": torch.set_rng_state,
        "cuda": torch.cuda.set_rng_state,
    }
    for key, value in mine.items():
        setters[key.rpartition(".")[2]](value)


def _of_all_ranks(names: set[str]) -> set[str]:
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, names)
    return set().union(*parts)
