"""Beginning of a run that goes on from another one: its checkpoint, vocabularies and state."""

from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path

from mail_torchrec.checkpoint.intact import faults_over_ranks, intact_model_checkpoint
from mail_torchrec.checkpoint.manifest import CONFIG, checkpoint_digest, read_manifest
from mail_torchrec.checkpoint.taken_weights import take_weights
from mail_torchrec.config import Config, config_differences, load_config
from mail_torchrec.continuation.changes import CHANGEABLE_SETTINGS, check_types, refusal
from mail_torchrec.continuation.days import training_day
from mail_torchrec.continuation.parent_record import (
    PARENT_FILE,
    Ancestor,
    How,
    ParentRecord,
    file_digits,
    read_parent,
)
from mail_torchrec.continuation.progressive_record import write_progressive
from mail_torchrec.data.column_types import load_column_types
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.fitting import EncoderFitter, update_encoders
from mail_torchrec.data.source import Source
from mail_torchrec.distributed.collectives import broadcast_from_rank_0
from mail_torchrec.distributed.preemption import PreemptionHandler
from mail_torchrec.train.assembly import AssembledModel, table_keys
from mail_torchrec.train.metrics_writer import MetricsWriter
from mail_torchrec.train.new_owners import reset_rows
from mail_torchrec.train.progressive import log_progressive, score_new_rows
from mail_torchrec.train.resume import check_vocabularies
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.state import restore
from mail_torchrec.train.validator import sample_rows
from mail_torchrec.utils.logging import get_logger
from mail_torchrec.utils.run_files import write_file
from mail_torchrec.utils.spans import span

logger = get_logger(__name__)


@dataclass(frozen=True)
class ParentRun:
    """Run that a new run goes on from, as it was asked for."""

    path: Path
    """Its directory."""
    how: How = "continue"
    again: bool = False
    """Train even on files that an ancestor was trained on."""

    def __str__(self) -> str:
        return f"--{self.how} {self.path}"


@dataclass(frozen=True)
class Continuation:
    """Run that begins with the weights of another one."""

    record: ParentRecord
    folder: Path
    """The parent's checkpoint."""
    encoders: Encoders
    """The parent's."""

    @property
    def goes_on(self) -> bool:
        """Returns whether optimizers, steps and vocabularies go on, or weights alone are taken."""
        return self.record.how == "continue"

    @property
    def first_step(self) -> int:
        """Step that the run begins after."""
        return self.record.parent.step if self.goes_on else 0

    def fit_encoders(self, fitter: EncoderFitter, day: date | None) -> Encoders:
        """Updates the parent's encoders, or fits new ones with the scales that its towers know.

        Args:
            fitter: has read the training rows.
            day: of the rows, by which ids expire; None where none is known.
        """
        if not self.goes_on:
            fitted = fitter.encoders(day)
            scales, vectors = self.encoders.scales, self.encoders.vectors
            return Encoders(
                fitted.tables,
                {name: scales.get(name, scale) for name, scale in fitted.scales.items()},
                {name: vectors.get(name, scale) for name, scale in fitted.vectors.items()},
            )
        return update_encoders(fitter, self.encoders, day)

    def begin(
        self,
        assembled: AssembledModel,
        config: Config,
        encoders: Encoders,
        source: Source,
        run_dir: RunDir,
        writer: MetricsWriter,
        preemption: PreemptionHandler,
    ) -> None:
        """Gives the model of a new run what it takes of the parent; every rank calls it.

        Where the run goes on, the parent scores the new rows first. Then rows of tables that belong
        to other ids than before get fresh weights and no optimizer state, and count as touched.

        Raises:
            ValueError: on every rank; the state does not fit the sharding here.
            SystemExit: the run was told to stop; it begins here again.
        """
        tables = table_keys(config, assembled.feature_tables, encoders)
        if not self.goes_on:
            self._take_weights(assembled, tables, encoders, writer)
            return
        with span("loading the parent's checkpoint"):
            restart = set(config.checkpoint.restart_state)
            restore(assembled, self.folder, self.first_step, tables, restart)
        if (num_rows := config.train.progressive_rows) != 0:
            rows = sample_rows(source, None if num_rows == "all" else num_rows)
            of_parent = self.encoders, rows, self.first_step
            record = score_new_rows(assembled, config, *of_parent, partial(_stop, preemption))
            broadcast_from_rank_0(lambda: write_progressive(run_dir.path, record))
            log_progressive(record)
            writer.record_metrics("progressive", record.metrics, record.seconds)
        owners = {
            name: encoder.new_owners(self.encoders.tables[name])
            for name, encoder in encoders.tables.items()
        }
        reset_rows(assembled, config, encoders, owners)
        if (touched := assembled.touched) is not None:
            for table, found in owners.items():
                touched.mark(table, found.rows_N)

    def _take_weights(
        self,
        assembled: AssembledModel,
        tables: dict[str, str],
        encoders: Encoders,
        writer: MetricsWriter,
    ) -> None:
        """Takes the parent's weights as far as they fit, and says which do and which do not."""
        with span("loading the parent's weights"):
            found = take_weights(assembled.model, tables, encoders, self.folder, self.encoders)
        logger.info("taken from '%s': %s", self.folder, ", ".join(found.taken))
        if found.left:
            left = "\n  ".join(["", *found.left])
            logger.warning("not taken from '%s', and begun at random:%s", self.folder, left)
        if (averages := assembled.optimizer.averages) is not None:
            averages.restart()
        writer.write_event({"init_from": found._asdict()})


def _stop(preemption: PreemptionHandler) -> None:
    """Ends a run that is told to stop before its first step."""
    if preemption.should_stop():
        logger.info("told to stop before the first step; --resume begins with the parent again")
        raise SystemExit(preemption.exit_code)


def is_continued(run_dir: RunDir) -> bool:
    """Returns whether a run goes on from another one, with its optimizers and steps."""
    record = read_parent(run_dir.path, is_recorded=False)
    return record is not None and record.how == "continue"


def check_same_parent(run_dir: RunDir, wanted: ParentRun | None) -> None:
    """Checks that a run directory holds no run that was begun in another way.

    Args:
        run_dir: of the run that begins or is resumed.
        wanted: parent that was asked for; None takes the recorded one, or none.

    Raises:
        ValueError: the run has another parent, or none.
    """
    if wanted is None:
        return
    if wanted.path.resolve() == run_dir.path.resolve():
        raise ValueError(
            f"{wanted} is the run directory itself; --resume goes on with that run, and a run that "
            "continues it needs another --run-dir"
        )
    record = read_parent(run_dir.path, is_recorded=False)
    begun = None if record is None else (Path(record.parent.run), record.how)
    is_begun = record is not None or run_dir.config.exists()
    if is_begun and begun != (wanted.path.resolve(), wanted.how):
        found = "without a parent" if record is None else f"with --{record.how} {record.parent.run}"
        raise ValueError(
            f"the run in '{run_dir.path}' was begun {found}, received {wanted}; give what it was "
            "begun with, or choose another --run-dir"
        )


def open_parent(
    config: Config, run_dir: RunDir, source: Source, wanted: ParentRun | None
) -> Continuation | None:
    """Opens the parent of a run that begins, and writes ``parent.json``; every rank calls it.

    Args:
        config: of the new run.
        run_dir: of the new run; one that was begun before has the parent that it had.
        source: new training rows.
        wanted: parent that was asked for; None takes the recorded one.

    Returns:
        None where the run has no parent.

    Raises:
        ValueError: there is no intact checkpoint, the configuration changes what it may not, or the
            data was trained on before; all differences are listed.
    """
    begun = broadcast_from_rank_0(partial(read_parent, run_dir.path, is_recorded=False))
    if begun is not None:
        again = begun.again or (wanted is not None and wanted.again)
        wanted = ParentRun(Path(begun.parent.run), begun.how, again)
    if wanted is None:
        return None
    parent = RunDir(wanted.path.resolve())
    broadcast_from_rank_0(parent.check_trained)
    with span("checking the parent's checkpoint"):
        folder = _checkpoint(parent, begun)
    found = load_config(folder / CONFIG, [])

    def check() -> ParentRecord:
        check_vocabularies(folder, parent)
        record = _record(parent, folder, wanted, training_day(config.data, source))
        if wanted.how == "continue":
            if other := config_differences(found, config, CHANGEABLE_SETTINGS):
                raise ValueError(refusal(str(folder), other))
            check_types(source.path, source.types, load_column_types(parent.vocabularies))
            if text := record.trained_before(source.path, source.fingerprints):
                if not wanted.again:
                    raise ValueError(
                        f"{text}; set data.train to the days that are new, or add --again to train "
                        "on these rows once more"
                    )
                logger.warning("%s; it is trained on AGAIN (--again)", text)
        write_file(run_dir.path / PARENT_FILE, record.model_dump_json(indent=1) + "\n")
        logger.info("%s: from the checkpoint of step %d", wanted, record.parent.step)
        return record

    record = broadcast_from_rank_0(check)
    return Continuation(record, folder, Encoders.load(parent.vocabularies, found.schema_))


def _checkpoint(parent: RunDir, begun: ParentRecord | None) -> Path:
    """Finds the checkpoint that an export of the parent takes, or that the run was begun with."""
    folder: Path | None
    if begun is None:
        folder = intact_model_checkpoint(parent.checkpoints)
        assert folder is not None, "checked by check_trained"
        return folder
    ancestor = begun.parent
    folder = parent.checkpoints.target(ancestor.step)
    faults = [f"'{folder}' is gone"]
    if broadcast_from_rank_0(folder.is_dir):
        faults = faults_over_ranks(folder)
        if not faults and checkpoint_digest(folder) != ancestor.checkpoint:
            faults = [f"'{folder}' is another checkpoint now"]
    if faults:
        raise ValueError(
            f"the run was begun from step {ancestor.step} of '{ancestor.run}', and has no "
            f"checkpoint of its own yet: {'; '.join(faults)}. Bring that checkpoint back, or begin "
            "anew with --from-scratch"
        )
    return folder


def _record(parent: RunDir, folder: Path, wanted: ParentRun, day: date | None) -> ParentRecord:
    """Describes the parent and its ancestors."""
    manifest, above = read_manifest(folder), read_parent(parent.path)
    ancestor = Ancestor(
        run=str(parent.path),
        name=manifest.config_name,
        day=manifest.day,
        step=manifest.step,
        checkpoint=checkpoint_digest(folder),
        rows=manifest.num_rows,
        files=tuple(file_digits(file) for file in manifest.data),
    )
    ancestors = (*(() if above is None else above.ancestors), ancestor)
    text = None if day is None else str(day)
    return ParentRecord(how=wanted.how, day=text, again=wanted.again, ancestors=ancestors)
