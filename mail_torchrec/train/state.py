"""Tensors of a run in a checkpoint, and their restoration under any sharding plan.

Keys are ``model.PARAMETER``, ``optimizer.GROUP.PARAMETER.STATE`` (the groups of
``optim/groups.py``) and ``random.RANK.DEVICE``; with ``train.ema`` also ``ema.PARAMETER`` and,
between two updates of ``train.accumulate``, ``gradient.RANK.PARAMETER``; where they are recorded,
``touched.TABLE``. Schedules have no state but the step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorStorageMetadata

from mail_torchrec.checkpoint.staging import StateDict, global_size
from mail_torchrec.checkpoint.storage import read_tensor_metadata, read_tensors
from mail_torchrec.distributed.collectives import gather_objects, rank, world_size
from mail_torchrec.optim.assignment import FUSED, TABLE_GROUPS
from mail_torchrec.optim.ema import EMA_PREFIX
from mail_torchrec.train.assembly import AssembledModel

_MODEL, _OPTIMIZER, _RANDOM, _GRADIENT = "model.", "optimizer.", "random.", "gradient."


def model_state(assembled: AssembledModel) -> StateDict:
    """Returns weights and buffers."""
    return {_MODEL + key: value for key, value in assembled.model.state_dict().items()}


def optimizer_state(assembled: AssembledModel) -> StateDict:
    """Returns moments, sums and step counts of all optimizer groups.

    The state of a sharded table is there on the ranks that hold a part of the table.
    """
    found = {
        f"{_OPTIMIZER}{group.name}.{parameter}.{name}": value
        for group in assembled.optimizer
        for parameter, state in group.state.items()
        for name, value in state.items()
    }
    assert all(isinstance(value, torch.Tensor | ShardedTensor) for value in found.values())
    return found


def random_state() -> StateDict:
    """Returns the states of this rank's random generators."""
    states = {f"{_RANDOM}{rank()}.cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states[f"{_RANDOM}{rank()}.cuda"] = torch.cuda.get_rng_state()
    return states


def run_state(assembled: AssembledModel) -> StateDict:
    """Returns the whole state of a run; the tensors are the run's own, not copies.

    Every rank calls it.
    """
    if assembled.touched is not None:
        assembled.touched.unite_replicas()
    return (
        model_state(assembled)
        | average_state(assembled)
        | optimizer_state(assembled)
        | gradient_state(assembled)
        | random_state()
        | ({} if assembled.touched is None else assembled.touched.state)
    )


def average_state(assembled: AssembledModel) -> StateDict:
    """Returns the averages of the dense weights; nothing without ``train.ema``."""
    averages = assembled.optimizer.averages
    found = {} if averages is None else averages.averages
    return {EMA_PREFIX + name: value for name, value in found.items()}


def gradient_state(assembled: AssembledModel) -> StateDict:
    """Returns this rank's gradients that wait for their update (``train.accumulate``)."""
    found = assembled.optimizer.accumulated_gradients()
    return {f"{_GRADIENT}{rank()}.{name}": value for name, value in found.items()}


def load_model(assembled: AssembledModel, folder: Path) -> None:
    """Reads the weights and buffers that a checkpoint is evaluated with, the averaged ones.

    Raises:
        ValueError: the checkpoint holds another model's weights.
    """
    saved = read_tensor_metadata(folder)
    _load_model(assembled, folder, saved)
    _load_averages(assembled, folder, saved)
    if assembled.optimizer.averages is not None:
        assembled.optimizer.averages.load_into_model()


def restore(
    assembled: AssembledModel, folder: Path, step: int, tables: dict[str, str], restart: set[str]
) -> None:
    """Reads the whole state of a run from a checkpoint.

    Args:
        assembled: a model on its ranks.
        folder: the checkpoint.
        step: steps trained in it.
        tables: state-dict key -> table.
        restart: tables whose optimizer state is not read.

    Raises:
        ValueError: on every rank; the checkpoint holds another model's weights, or some optimizer
            state does not fit the sharding here.
    """
    saved = read_tensor_metadata(folder)
    _load_model(assembled, folder, saved)
    _load_averages(assembled, folder, saved)
    _load_optimizers(assembled, folder, saved, _TableKeys.of(tables, restart))
    assembled.optimizer.num_done = step
    _load_gradients(assembled, folder, saved)
    if FUSED in assembled.optimizer.groups:
        # FBGEMM's Adams count steps outside of their state.
        assembled.optimizer.set_optimizer_step(step)
    _restore_random(folder, saved, step)


@dataclass(frozen=True)
class _TableKeys:
    """Assigns keys of optimizer state to tables."""

    prefixes: dict[str, str]
    """Prefix of the keys of a table -> the table."""
    restart: set[str]
    """Tables whose optimizer state is not read."""

    @staticmethod
    def of(tables: dict[str, str], restart: set[str]) -> "_TableKeys":
        """Makes the prefixes from state-dict keys of tables."""
        prefixes = {
            f"{_OPTIMIZER}{group}.{key}.": table
            for group in TABLE_GROUPS
            for key, table in tables.items()
        }
        return _TableKeys(prefixes, restart)

    def table(self, key: str) -> str | None:
        """Returns the table of a key; None for the towers' keys."""
        return next(
            (table for prefix, table in self.prefixes.items() if key.startswith(prefix)), None
        )

    def to_read(self, state: dict[str, Any]) -> dict[str, Any]:
        """Leaves out the state of tables that start anew."""
        return {key: value for key, value in state.items() if self.table(key) not in self.restart}

    def refusal(self, folder: Path, faults: list[str]) -> str:
        """Formats the faults with what to do about them."""
        tables = sorted({table for fault in faults if (table := self.table(fault)) is not None})
        remedy = "resume with its configuration"
        if tables:
            remedy = (
                f"shard {', '.join(tables)} as in {folder / 'plan.json'} (sharding.constraints), "
                "or begin their optimizer state anew with "
                f"checkpoint.restart_state=[{','.join(tables)}]; weights are kept"
            )
        head = f"the optimizer state in '{folder}' does not fit; {remedy}:"
        return "\n  ".join([head, *faults])


def _load_model(
    assembled: AssembledModel, folder: Path, saved: dict[str, TensorStorageMetadata]
) -> None:
    state = model_state(assembled)
    there = {key: tuple(value.size) for key, value in saved.items() if key.startswith(_MODEL)}
    here = {key: tuple(global_size(value)) for key, value in state.items()}
    faults = [
        f"{key}: {there.get(key, 'missing')} there, {here.get(key, 'missing')} here"
        for key in {**there, **here}
        if there.get(key) != here.get(key)
    ]
    if faults:
        raise ValueError(
            f"'{folder}' does not hold this model's weights:\n  " + "\n  ".join(faults[:10])
        )
    read_tensors(state, folder, dist.group.WORLD)
    assembled.model.load_state_dict(
        {key.removeprefix(_MODEL): value for key, value in state.items()}
    )


def _load_averages(
    assembled: AssembledModel, folder: Path, saved: dict[str, TensorStorageMetadata]
) -> None:
    state = average_state(assembled)
    if missing := [key for key in state if key not in saved]:
        raise ValueError(
            f"'{folder}' holds no averaged weights ({missing[0]}); leave train.ema out, as the run "
            "was trained"
        )
    if state:
        read_tensors(state, folder, dist.group.WORLD)


def _load_gradients(
    assembled: AssembledModel, folder: Path, saved: dict[str, TensorStorageMetadata]
) -> None:
    """Reads gradients that wait for their update.

    On another number of ranks each gets the mean of theirs, which averages to the same.
    """
    keys = [key for key in saved if key.startswith(_GRADIENT)]
    ranks = sorted({int(key.split(".")[1]) for key in keys})
    read = [rank()] if len(ranks) == world_size() else ranks
    found: dict[str, torch.Tensor] = {}
    for number in read:
        prefix = f"{_GRADIENT}{number}."
        state = {
            key: torch.empty(saved[key].size, device=assembled.device)
            for key in keys
            if key.startswith(prefix)
        }
        read_tensors(state, folder, dist.group.WORLD)
        for key, value in state.items():
            name = key.removeprefix(prefix)
            found[name] = found[name] + value / len(read) if name in found else value / len(read)
    assembled.optimizer.load_accumulated_gradients(found)


def _load_optimizers(
    assembled: AssembledModel,
    folder: Path,
    saved: dict[str, TensorStorageMetadata],
    keys: _TableKeys,
) -> None:
    """Reads the state of all optimizer groups, or raises on every rank where it does not fit."""
    model = model_state(assembled)
    wanted = keys.to_read(optimizer_state(assembled))
    faults = [
        fault for key, value in wanted.items() if (fault := _misfit(key, value, saved, model))
    ]
    saved_keys = keys.to_read({key: None for key in saved if key.startswith(_OPTIMIZER)})
    missing = saved_keys.keys() - _union_over_ranks(set(wanted))
    faults += [f"{key} was saved and is not had here" for key in sorted(missing)]
    if faults := sorted(_union_over_ranks(set(faults))):
        raise ValueError(keys.refusal(folder, faults))
    read_tensors(wanted, folder, dist.group.WORLD)


def _misfit(
    key: str, value: Any, saved: dict[str, TensorStorageMetadata], model: StateDict
) -> str | None:
    """Describes why saved optimizer state cannot be read into this one; None where it can."""
    if key not in saved:
        return f"{key} was not saved"
    there, here = tuple(saved[key].size), tuple(global_size(value))
    if there != here:
        return f"{key} has the size {there} there, {here} here"
    if isinstance(value, ShardedTensor) and len(here) == 1:
        # One number for each row of a column shard: it has no meaning for other columns.
        [weights] = [name for name in model if f".{name.removeprefix(_MODEL)}." in key]
        columns_there = _columns(saved[weights].chunks)
        columns_here = _columns(_chunks(model[weights]))
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
    """Restores the generators; on another number of ranks, seeds new ones by the step."""
    own = random_state()
    ranks_there = sum(key.startswith(_RANDOM) and key.endswith(".cpu") for key in saved)
    if ranks_there != world_size() or not own.keys() <= saved.keys():
        torch.manual_seed(torch.initial_seed() + 1_000_003 * world_size() * step)
        return
    read_tensors(own, folder, dist.group.WORLD)
    setters: dict[str, Callable[[torch.Tensor], None]] = {
        "cpu": torch.set_rng_state,
        "cuda": torch.cuda.set_rng_state,
    }
    for key, value in own.items():
        setters[key.rpartition(".")[2]](value)


def _union_over_ranks(names: set[str]) -> set[str]:
    return set().union(*gather_objects(names))
