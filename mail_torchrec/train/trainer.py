"""The trainer: load, train, evaluate, save."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from mail_torchrec.checkpoint.manifest import CONFIG, PLAN, Manifest, Progressed, Rank
from mail_torchrec.checkpoint.saver import Saver
from mail_torchrec.config import Config, dump_config, load_config
from mail_torchrec.data.encoders import Encoders, fit_encoders
from mail_torchrec.data.negatives import Negatives, NegativeSampler
from mail_torchrec.data.parquet.source import Source
from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.data.reading.partition import Position
from mail_torchrec.data.reading.reader import Reader, Share
from mail_torchrec.data.schema.feature_tables import FeatureTables
from mail_torchrec.distributed.collectives import from_rank_0, rank, world_size
from mail_torchrec.distributed.preemption import StopSignal, leave_process_group, start_fork_server
from mail_torchrec.distributed.process_group import process_group
from mail_torchrec.metrics.summary import Figures
from mail_torchrec.reporting.plots import draw_loss_curves
from mail_torchrec.towers.registry import tower_settings
from mail_torchrec.train.assembly import Assembled, assemble, feature_tables_of, table_keys
from mail_torchrec.train.evaluation import evaluate
from mail_torchrec.train.loop import Describe, Loaded, Loop, counted, say_counts
from mail_torchrec.train.memory_usage import usage
from mail_torchrec.train.progress import Progress
from mail_torchrec.train.resume import check_same_run, newest_good, vocabulary_sums
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.state import load_model, restore
from mail_torchrec.utils.spans import span


def train(
    config: Config, run_dir: RunDir, plan: Path | None = None, *, resume: bool = False
) -> dict[str, Figures]:
    """Trains and evaluates one run; every rank calls it.

    Args:
        config: of the run.
        run_dir: where it writes.
        plan: a plan file to shard by; None plans anew.
        resume: go on from the newest good checkpoint there, where there is one. A finished run
            gives its figures.

    Returns:
        The final figures, as in metrics.json.

    Raises:
        ValueError: something about the configuration or the data; the message says what to do.
        SystemExit: the run was told to stop (SIGTERM), and is saved.
    """
    with (
        process_group(config.train.device, config.train.timeout) as device,
        run_dir.held(resume=resume),
    ):
        if (finished := from_rank_0(lambda: _begin(config, run_dir, resume))) is not None:
            return finished
        with span("checking the checkpoints"):
            folder = newest_good(run_dir.checkpoints, set_aside=True) if resume else None
        source, test_source = (
            Source(config.data.path(part), config.schema_)
            for part in (config.data.train, config.data.test)
        )
        saved = (
            from_rank_0(lambda: check_same_run(folder, config, source, run_dir)) if folder else None
        )
        encoders = (
            Encoders.load(run_dir.vocabularies, config.schema_)
            if saved
            else _encoders(config, source, run_dir)
        )
        train_data = load(config, encoders, feature_tables_of(config), source, training=True)
        if saved:
            train_data.reader.set_epoch(saved.position.epoch, saved.position.taken)
        train_data.reader.prepare()
        assembled = assemble(config, encoders, device, plan)
        test_data = load(config, encoders, assembled.feature_tables, test_source, training=False)
        documents = {CONFIG: dump_config(config), PLAN: assembled.plan_file}
        if rank() == 0:
            run_dir.plan.write_text(documents[PLAN])
            run_dir.config.write_text(documents[CONFIG])
        with _progress(config, run_dir, train_data, saved) as progress:
            with (
                Saver(
                    run_dir.checkpoints,
                    config.checkpoint,
                    documents,
                    progress.event,
                    saved.step if saved else None,
                ) as saver,
                StopSignal(config.checkpoint.grace, config.train.timeout) as stop,
            ):
                describe = _describe(config, source, run_dir)
                loop = Loop(
                    assembled,
                    train_data,
                    progress,
                    saver,
                    stop,
                    describe,
                    config.train.epochs,
                    config.checkpoint.every,
                )
                if folder and saved:
                    tables = table_keys(config, assembled.feature_tables, encoders)
                    with span("loading the checkpoint"):
                        restore(
                            assembled,
                            folder,
                            saved.step,
                            tables,
                            set(config.checkpoint.restart_state),
                        )
                    loop.run(saved.position, counted(saved.ranks).counts)
                else:
                    loop.run(Position(epoch=0), [])
            progress.event({"usage": usage(assembled)})
            predictions = run_dir.predictions if config.train.save_predictions else None
            with span("evaluation"):
                figures, counts = evaluate(
                    assembled, test_data.reader, test_data.loader, predictions
                )
            progress.event({"evaluation": figures, "counts": counts})
        say_counts("test", counts)
        if rank() == 0:
            draw_loss_curves([run_dir.log], run_dir.curves)
            run_dir.metrics.write_text(json.dumps(figures, indent=2) + "\n")
        return figures


def _begin(config: Config, run_dir: RunDir, resume: bool) -> dict[str, Figures] | None:
    """Opens the run directory; the figures of a run that is finished, and was not given more epochs."""
    run_dir.open(resume=resume)
    if not run_dir.metrics.exists():
        return None
    epochs = load_config(run_dir.config, []).train.epochs
    if config.train.epochs > epochs:
        run_dir.metrics.unlink()
        return None
    tqdm.write(
        f"the run in '{run_dir.path}' is finished, with {epochs} epochs; these are its figures",
        file=sys.stderr,
    )
    figures: dict[str, Figures] = json.loads(run_dir.metrics.read_text())
    return figures


def _progress(config: Config, run_dir: RunDir, data: Loaded, saved: Manifest | None) -> Progress:
    """The records of a run, from where it stands."""
    if saved is None:
        return Progress(run_dir, config.train.epochs * len(data.reader), config.train.log_every)
    left = data.reader.steps_left + (config.train.epochs - saved.position.epoch - 1) * len(
        data.reader
    )
    if rank() == 0:
        tqdm.write(
            f"going on after step {saved.step}, in epoch {saved.position.epoch + 1}: {left} "
            "steps are left",
            file=sys.stderr,
        )
    sums = {name: torch.tensor(value) for name, value in counted(saved.ranks).losses.items()}
    return Progress(
        run_dir,
        saved.step + left,
        config.train.log_every,
        num_done=saved.step,
        before=saved.progress,
        sums=sums,
    )


def _describe(config: Config, source: Source, run_dir: RunDir) -> Describe:
    sums = vocabulary_sums(run_dir) if rank() == 0 else {}
    versions = {name: version(name) for name in ("mail-torchrec", "torch", "torchrec")}

    def describe(
        step: int, position: Position, progress: Progressed, ranks: list[Rank]
    ) -> Manifest:
        return Manifest(
            step=step,
            position=position,
            progress=progress,
            ranks=ranks,
            written=datetime.now(UTC).isoformat(timespec="seconds"),
            config_name=config.name,
            versions=versions,
            num_rows=source.num_rows,
            data=source.fingerprint,
            vocabularies=sums,
        )

    return describe


def evaluate_run(
    run_dir: RunDir, data: str | None, overrides: list[str], predictions: Path | None = None
) -> dict[str, Figures]:
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
        with span("evaluation"):
            figures, counts = evaluate(assembled, test_data.reader, test_data.loader, predictions)
        say_counts(test_data.reader.path, counts)
        return figures


@contextmanager
def opened_run(
    run_dir: RunDir, data: str | None, overrides: list[str]
) -> Iterator[tuple[Assembled, Loaded]]:
    """A finished run, its weights loaded, and its test data or other files; arguments and errors as :func:`evaluate_run`."""
    run_dir.check()
    config = load_config(run_dir.config, overrides)
    with process_group(config.train.device, config.train.timeout) as device:
        source = Source(data or config.data.path(config.data.test), config.schema_)
        encoders = Encoders.load(run_dir.vocabularies, config.schema_)
        assembled = assemble(config, encoders, device)
        folder = newest_good(run_dir.checkpoints)
        assert folder is not None
        load_model(assembled, folder)
        yield assembled, load(config, encoders, assembled.feature_tables, source, training=False)


def _encoders(config: Config, source: Source, run_dir: RunDir) -> Encoders:
    """Rank 0 builds the vocabularies; every rank reads them from the run directory."""

    def build() -> None:
        fit_encoders(source, config.schema_, config.data.cold_start, progress=True).save(
            run_dir.vocabularies
        )

    with span("fitting the vocabularies"):
        from_rank_0(build)
    return Encoders.load(run_dir.vocabularies, config.schema_)


def load(
    config: Config,
    encoders: Encoders,
    feature_tables: FeatureTables,
    source: Source,
    *,
    training: bool,
) -> Loaded:
    """A reader of this rank's rows and its loader, as a run has them.

    Args:
        config: of the run.
        encoders: raw values -> rows.
        feature_tables: the keys to write.
        source: opened files.
        training: shuffled batches with negatives; else evaluation's.
    """
    negatives = samplers(config, encoders, feature_tables) if training else {}
    reader = Reader(
        source,
        config.schema_,
        encoders,
        feature_tables,
        config.data,
        share=Share(rank(), world_size()),
        batch_size=config.train.batch_size if training else config.train.eval_batch_size,
        shuffle=training,
        seed=config.train.seed,
        samplers=negatives,
    )
    workers = config.data.num_workers
    if workers:
        start_fork_server()
    loader: DataLoader[Batch] = DataLoader(
        reader,
        batch_size=None,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if workers else None,
        multiprocessing_context="forkserver"
        if workers
        else None,  # a plain fork copies CUDA and S3 clients, which do not survive it
        worker_init_fn=leave_process_group,
        # else each epoch draws from the generator of the dropout, and a resumed one once more
        generator=torch.Generator(),
    )
    return Loaded(reader, loader)


def samplers(
    config: Config, encoders: Encoders, feature_tables: FeatureTables
) -> dict[str, NegativeSampler]:
    """A sampler for each sequence whose match loss the tower trains."""
    made = {}
    for sequence in feature_tables.match:
        options, table = (
            tower_settings(config.model.tower, config.model.tower_options),
            config.schema_.table_of(sequence),
        )
        made[sequence] = NegativeSampler(
            Negatives(options.negatives), options.num_negatives, encoders.tables[table], table
        )
    return made
