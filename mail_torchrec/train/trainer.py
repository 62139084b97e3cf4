"""The trainer: load, train, evaluate, save."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from mail_torchrec.collectives import rank, world_size
from mail_torchrec.config import Config, dump_config, load_config
from mail_torchrec.data.batch import Batch
from mail_torchrec.data.encoders import Encoders, fit_encoders
from mail_torchrec.data.lookups import Lookups
from mail_torchrec.data.negatives import Negatives, NegativeSampler
from mail_torchrec.data.reader import Reader, Share
from mail_torchrec.data.source import Source
from mail_torchrec.embeddings.sharding import from_rank_0
from mail_torchrec.towers.registry import tower_settings
from mail_torchrec.train.assembly import Assembled, assemble
from mail_torchrec.train.evaluation import evaluate, outputs, total_counts
from mail_torchrec.train.metrics import Figures
from mail_torchrec.train.pictures import draw_loss_curves
from mail_torchrec.train.progress import Progress
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.runtime import process_group
from mail_torchrec.train.usage import usage
from mail_torchrec.train.weights import load_weights, save_weights


@dataclass
class Loaded:
    """A reader and the loader that runs it."""

    reader: Reader
    loader: "DataLoader[Batch]"


def train(config: Config, run_dir: RunDir, plan: Path | None = None) -> dict[str, Figures]:
    """Trains and evaluates one run; every rank calls it.

    Args:
        config: everything but the data.
        run_dir: where it writes.
        plan: a plan file to shard by; None plans anew.

    Returns:
        The final figures, as in metrics.json.

    Raises:
        ValueError: something about the configuration or the data; the message says what to do.
    """
    with process_group(config.train.device) as device:
        from_rank_0(run_dir.create)
        source, test_source = (Source(config.data.path(part), config.schema_) for part in (config.data.train, config.data.test))
        encoders = _encoders(config, source, run_dir)
        assembled = assemble(config, encoders, device, plan)
        train_data = _load(config, encoders, assembled, source, training=True)
        test_data = _load(config, encoders, assembled, test_source, training=False)
        if rank() == 0:
            run_dir.plan.write_text(assembled.plan_file)
            run_dir.config.write_text(dump_config(config))
        with Progress(run_dir, config.train.epochs * len(train_data.reader), config.train.log_every) as progress:
            for epoch in range(config.train.epochs):
                _train_epoch(assembled, train_data, epoch, progress)
            progress.event({"usage": usage(assembled)})
            save_weights(assembled.model, run_dir.weights)  # before the test data can go wrong
            predictions = run_dir.predictions if config.train.save_predictions else None
            figures, counts = evaluate(assembled, test_data.reader, test_data.loader, predictions)
            progress.event({"evaluation": figures, "counts": counts})
        _say_counts("test", counts)
        if rank() == 0:
            draw_loss_curves([run_dir.log], run_dir.curves)
            run_dir.metrics.write_text(json.dumps(figures, indent=2) + "\n")
        return figures


def evaluate_run(run_dir: RunDir, data: str | None, overrides: list[str], predictions: Path | None = None) -> dict[str, Figures]:
    """Evaluates a finished run, on its own test data or other files; on any number of ranks.

    Args:
        run_dir: the run.
        data: Parquet file or folder (or URI) instead of its test data.
        overrides: of its configuration.
        predictions: file for the scores of all rows; None writes none.

    Raises:
        ValueError: no finished run there, or data that does not fit its schema.
    """
    with opened_run(run_dir, data, overrides) as (assembled, test_data):
        figures, counts = evaluate(assembled, test_data.reader, test_data.loader, predictions)
        _say_counts(test_data.reader.path, counts)
        return figures


@contextmanager
def opened_run(run_dir: RunDir, data: str | None, overrides: list[str]) -> Iterator[tuple[Assembled, Loaded]]:
    """A finished run, its weights loaded, and its test data or other files; arguments and errors as :func:`evaluate_run`."""
    run_dir.check()
    config = load_config(run_dir.config, overrides)
    with process_group(config.train.device) as device:
        source = Source(data or config.data.path(config.data.test), config.schema_)
        encoders = Encoders.load(run_dir.vocabularies, config.schema_)
        assembled = assemble(config, encoders, device)
        load_weights(assembled.model, run_dir.weights)
        yield assembled, _load(config, encoders, assembled, source, training=False)


def _encoders(config: Config, source: Source, run_dir: RunDir) -> Encoders:
    """Rank 0 builds the vocabularies; every rank reads them from the run directory."""

    def build() -> None:
        fit_encoders(source, config.schema_, config.data.cold_start, progress=True).save(run_dir.vocabularies)

    from_rank_0(build)
    return Encoders.load(run_dir.vocabularies, config.schema_)


def _load(config: Config, encoders: Encoders, assembled: Assembled, source: Source, *, training: bool) -> Loaded:
    negatives = samplers(config, encoders, assembled.lookups) if training else {}
    reader = Reader(
        source,
        config.schema_,
        encoders,
        assembled.lookups,
        config.data,
        share=Share(rank(), world_size()),
        batch_size=config.train.batch_size if training else config.train.eval_batch_size,
        shuffle=training,
        seed=config.train.seed,
        samplers=negatives,
    )
    workers = config.data.num_workers
    loader: DataLoader[Batch] = DataLoader(
        reader,
        batch_size=None,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if workers else None,
        multiprocessing_context="forkserver" if workers else None,  # a plain fork copies CUDA and S3 clients, which do not survive it
    )
    return Loaded(reader, loader)


def samplers(config: Config, encoders: Encoders, lookups: Lookups) -> dict[str, NegativeSampler]:
    """A sampler for each sequence whose match loss the tower trains."""
    made = {}
    for sequence in lookups.match:
        options, table = tower_settings(config.model.tower, config.model.tower_options), config.schema_.table_of(sequence)
        made[sequence] = NegativeSampler(Negatives(options.negatives), options.num_negatives, encoders.tables[table], table)
    return made


def _train_epoch(assembled: Assembled, data: Loaded, epoch: int, progress: Progress) -> None:
    data.reader.set_epoch(epoch)
    counts = torch.zeros(len(data.reader.count_names), dtype=torch.int64, device=assembled.device)
    for output in outputs(assembled, data.loader):
        progress.step(output.losses, len(output.batch))
        counts += output.batch.counts
    named = total_counts(data.reader, counts)
    progress.event({"epoch": epoch + 1, "counts": named})
    _say_counts(f"epoch {epoch + 1}", named)


_MET = {
    "unknown": ("ids outside the vocabulary, looked up in row 0", ""),
    "cut": ("lists cut to their newest max_length entries", " rows"),
    "distinct": ("different users of each batch, summed up", ""),
    "unclicked": ("conversions without a click, which count as none", " rows"),
}
"""Kind of count -> what to say of it, and its unit."""


def _say_counts(where: str, counts: dict[str, int]) -> None:
    """What was met in the data that a person should know of."""
    for kind, (what, unit) in _MET.items():
        found = [f"{name.partition('/')[2]} {count:,}{unit}" for name, count in counts.items() if name.startswith(f"{kind}/")]
        if found and rank() == 0:
            tqdm.write(f"{where}: {what}: {', '.join(found)}", file=sys.stderr)
