"""Which checkpoint a run goes on from, and whether it may."""

import sys
from pathlib import Path

import torch.distributed as dist
from tqdm import tqdm

from mail_torchrec.checkpoint.folder import Checkpoints, digests, fault, read_sums
from mail_torchrec.checkpoint.manifest import CONFIG, Manifest, read_manifest
from mail_torchrec.config import Config, differences, load_config
from mail_torchrec.data.parquet.source import Source
from mail_torchrec.distributed.collectives import from_rank_0, rank, world_size
from mail_torchrec.train.run_dir import RunDir

_FREE = ("checkpoint.", "sharding.", "data.root", "data.train", "data.test", "data.num_workers", "data.shuffle_buffer_size", "train.epochs",
         "train.batch_size", "train.eval_batch_size", "train.log_every", "train.device", "train.timeout",
         "train.save_predictions", "train.precision", "train.compile")  # fmt: skip
"""Settings that may change on the way; the training data must have the same rows wherever it
lies."""


def newest_good(checkpoints: Checkpoints, *, set_aside: bool = False) -> Path | None:
    """The newest checkpoint whose files are what was written; every rank calls it, and checks a part of the files.

    Args:
        checkpoints: of a run.
        set_aside: rename the damaged ones.

    Returns:
        None where none was published.

    Raises:
        ValueError: all that there are are damaged.
    """
    published = from_rank_0(checkpoints.published)
    damaged = []
    for path in reversed(published):
        faults = _faults(path)
        if not faults:
            return path
        damaged += faults
        if rank() == 0:
            tqdm.write(
                f"WARNING: '{path}' is damaged, the one before it is used:\n  "
                + "\n  ".join(faults),
                file=sys.stderr,
            )
            if set_aside:
                checkpoints.set_aside(path)
    if damaged:
        raise ValueError(
            f"every checkpoint below '{checkpoints.path}' is damaged; delete the run directory to "
            "begin anew:\n  " + "\n  ".join(damaged)
        )
    return None


def _faults(folder: Path) -> list[str]:
    """What is wrong with a checkpoint, the same on every rank."""
    try:
        sums = from_rank_0(lambda: read_sums(folder))
    except ValueError as error:
        return [str(error)]
    mine = [
        found
        for name in sorted(sums)[rank() :: world_size()]
        if (found := fault(folder, name, sums[name]))
    ]
    parts: list[list[str]] = [[] for _ in range(world_size())]
    dist.all_gather_object(parts, mine)
    return [found for part in parts for found in part]


def check_same_run(folder: Path, config: Config, source: Source, run_dir: RunDir) -> Manifest:
    """Reads what a checkpoint says of itself.

    Raises:
        ValueError: it is of another configuration, other training data or other vocabularies; all
            differences are listed.
    """
    manifest = read_manifest(folder)
    other = [
        line
        for line in differences(load_config(folder / CONFIG, []), config)
        if not line.startswith(_FREE)
    ]
    if other:
        raise ValueError(
            f"'{folder}' was trained with another configuration; resume with the same, or choose "
            "another --run-dir:\n  " + "\n  ".join(other)
        )
    if manifest.data != source.fingerprint:
        raise ValueError(
            f"'{source.path}' is not the training data of '{folder}': its row groups have other "
            f"sizes ({source.num_rows} rows, "
            f"{manifest.num_rows} then); bring that data back, or start a run of its own"
        )
    if wrong := [
        name for name, sum_ in vocabulary_sums(run_dir).items() ^ manifest.vocabularies.items()
    ]:
        raise ValueError(
            f"'{run_dir.vocabularies}' is not what '{folder}' was trained with: "
            f"{', '.join(sorted(set(wrong)))} changed"
        )
    return manifest


def vocabulary_sums(run_dir: RunDir) -> dict[str, str]:
    """File of ``vocabularies/`` -> checksum."""
    return digests(
        run_dir.vocabularies,
        sorted(path.name for path in run_dir.vocabularies.iterdir() if path.is_file()),
    )
