"""Paths, format, lock and history of a run directory."""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from mail_torchrec.checkpoint.folder import Checkpoints
from mail_torchrec.checkpoint.intact import FROM_SCRATCH
from mail_torchrec.continuation.parent_record import PARENT_FILE
from mail_torchrec.continuation.progressive_record import PROGRESSIVE_FILE
from mail_torchrec.distributed.collectives import broadcast_from_rank_0
from mail_torchrec.distributed.launcher import num_restarts
from mail_torchrec.metrics.details import DETAILS
from mail_torchrec.records.checksums import CHECKSUMS
from mail_torchrec.records.run_record import extend_record
from mail_torchrec.trackers.run_trackers import TRACKERS_FILE
from mail_torchrec.utils.file_lock import lock_folder
from mail_torchrec.utils.formats import (
    RUN_FILE,
    check_run_format,
    first_checkpoint,
    package_version,
    record_checkpoint,
    write_run_format,
)
from mail_torchrec.utils.local_path import check_local, make_output_dir
from mail_torchrec.utils.logging import get_logger

logger = get_logger(__name__)

_EARLIER = "earlier-"
# Seconds that a restarted job waits for the lock: ranks of the previous attempt may still be
# ending, on another host.
_RESTART_TIMEOUT = 120.0
# Seconds for a job that a person resumes: ranks whose launcher was killed end a second after it.
_RESUME_TIMEOUT = 5.0


@dataclass(frozen=True)
class RunDir:
    """Names the files of a run directory.

    ::

        .lock                the job that writes here now, or did last
        run.json             format of this directory, the version that made it, first checkpoint
        config.yaml          the resolved configuration
        vocabularies/        raw values -> table rows, scales of numeric columns
        parent.json          runs that it goes on from; progressive.json has the last one's metrics
        plan.json            which rank holds which part of which table
        SHA256SUMS           checksums of these, and at the end of the files of a finished run
        metrics.jsonl        losses and rows/s during the training
        loss_curves.png      the same as a picture
        tensorboard/         the same for TensorBoard
        checkpoints/         states during the training, and at its end
        profile/             traces and table of the steps that train.profile names
        predictions/         scores of all test rows, where train.save_predictions asks for them
        data.json            fingerprints of the training and test data, checksum of the test rows
        metrics_details.json metrics by column and tenth of the rows; calibration.png is the latter
        trackers.json        ids of the run at MLflow and other trackers
        metrics.json         final metrics of new, old and all rows; written last
        earlier-1/           all of these, of a run before that was begun anew
    """

    path: Path
    """A folder of this machine, or of storage mounted here."""

    def __post_init__(self) -> None:
        check_local(self.path, "the run directory")

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def vocabularies(self) -> Path:
        """Vocabularies and scales."""
        return self.path / "vocabularies"

    @property
    def plan(self) -> Path:
        """The sharding plan."""
        return self.path / "plan.json"

    @property
    def log(self) -> Path:
        """Losses during the training, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def curves(self) -> Path:
        """Loss curves."""
        return self.path / "loss_curves.png"

    @property
    def tensorboard(self) -> Path:
        """Event files of TensorBoard."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Checkpoints:
        """Saved states."""
        return Checkpoints(self.path / "checkpoints")

    @property
    def profile(self) -> Path:
        """Traces and table of profiled steps."""
        return self.path / "profile"

    @property
    def predictions(self) -> Path:
        """Scores of the test rows."""
        return self.path / "predictions"

    @property
    def data(self) -> Path:
        """Record of the data that the metrics belong to, see ``checkpoint/data_record.py``."""
        return self.path / "data.json"

    @property
    def record(self) -> Path:
        """Checksums of the run's files, see ``records/run_record.py``."""
        return self.path / CHECKSUMS

    @property
    def metrics(self) -> Path:
        """Final metrics."""
        return self.path / "metrics.json"

    @contextmanager
    def lock(self, *, resume: bool) -> Iterator[None]:
        """Keeps other jobs out for the block; every rank calls it.

        Args:
            resume: whether to wait for the last ranks of the job before.

        Raises:
            ValueError: another job holds the directory.
        """
        timeout = _RESTART_TIMEOUT if num_restarts() else _RESUME_TIMEOUT if resume else 0.0

        def lock(stack: ExitStack) -> None:
            if not self.path.exists():
                make_output_dir(self.path.parent)
                self.path.mkdir(mode=0o700)  # it has rows of users
            stack.enter_context(lock_folder(self.path, timeout))

        with ExitStack() as stack:
            broadcast_from_rank_0(lambda: lock(stack))
            yield

    def open(self, *, resume: bool, from_scratch: bool = False) -> None:
        """Opens the directory, for a new run or for one that is resumed.

        Args:
            resume: whether it may hold a run.
            from_scratch: whether to move what it holds into a folder of its own.

        Raises:
            ValueError: it holds a run that is not to be resumed, or a run of another format.
        """
        if from_scratch:
            self._move_aside()
        self._check_own()
        if self.config.exists() or self._log_bytes() or self._traces_of_checkpoints():
            if not resume:
                raise ValueError(self._occupied())
            check_run_format(self.path)
        write_run_format(self.path, package_version("mail-torchrec"))
        for part in self.path.glob(".*.part"):  # unfinished files of a killed run
            if part.is_dir():
                shutil.rmtree(part)
            else:
                part.unlink()
        try:
            self.checkpoints.clean()
        except OSError as error:
            logger.warning("unfinished checkpoints of a killed run stay: %s", error)

    def check_beginning(self) -> None:
        """Checks that a run without a checkpoint never had one, before it begins.

        Raises:
            ValueError: it had one.
        """
        if traces := self._traces_of_checkpoints():
            raise ValueError(
                f"the run in '{self.path}' has no checkpoint left to resume from, and had one "
                f"({', '.join(traces)}): it would begin at step 0. Bring a checkpoint back from a "
                f"copy, or {FROM_SCRATCH}"
            )
        if num_bytes := self._log_bytes():
            logger.warning(
                "the run in '%s' stopped before its first checkpoint, and begins at step 0; the "
                "%d bytes in %s are replaced",
                self.path,
                num_bytes,
                self.log.name,
            )

    def _log_bytes(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0

    def _traces_of_checkpoints(self) -> list[str]:
        """Lists what says that the run had a checkpoint; the results come after the last one."""
        results = (self.predictions, self.data, self.metrics)
        traces = [*self.checkpoints.traces(), *(path for path in results if path.exists())]
        names = [str(path.relative_to(self.path)) for path in traces]
        if step := first_checkpoint(self.path):
            names.append(f"{RUN_FILE} names one of step {step}")
        return names

    def record_results(self, metrics: str, *, has_predictions: bool) -> None:
        """Records the files of a finished run, before its metrics are written.

        Args:
            metrics: text of ``metrics.json``.
            has_predictions: whether the run wrote its predictions.
        """
        files = [self.data, self.log, *([self.predictions] if has_predictions else [])]
        names = [path.name for path in files if path.exists()]
        extend_record(self.path, names, {self.metrics.name: metrics})

    def record_checkpoint(self, step: int) -> None:
        """Records that a checkpoint was published, for :meth:`check_beginning` to know."""
        try:
            record_checkpoint(self.path, step)
        except (OSError, ValueError) as error:
            logger.warning("that there is a checkpoint could not be recorded: %s", error)

    def _move_aside(self) -> None:
        """Moves the files of a run into a new folder beside them.

        The configuration is moved last: a directory that was moved in part still holds a run.
        """
        if not (entries := self._entries()):
            return
        numbers = (self.path / f"{_EARLIER}{number}" for number in count(1))
        earlier = next(path for path in numbers if not os.path.lexists(path))
        earlier.mkdir()
        for path in entries:
            path.rename(earlier / path.name)
        logger.warning("the run that was in '%s' is in '%s' now", self.path, earlier)

    def _entries(self) -> list[Path]:
        """Lists what there is of a run, the configuration last."""
        files = (self.path / RUN_FILE, self.vocabularies, self.plan, self.log, self.curves)
        folders = (self.tensorboard, self.checkpoints.path, self.profile)
        results = (self.predictions, self.data, self.metrics, self.record)
        names = *DETAILS, TRACKERS_FILE, PARENT_FILE, PROGRESSIVE_FILE
        others = (self.path / name for name in names)
        everything = (*files, *folders, *results, *others, self.config)
        return [path for path in everything if os.path.lexists(path)]

    def _occupied(self) -> str:
        finished = self.metrics.exists()
        remedy = "" if finished else "add --resume to go on with it, "
        return (
            f"run directory '{self.path}' already holds a run "
            f"({'finished' if finished else 'unfinished'}); {remedy}choose another --run-dir, or "
            f"{FROM_SCRATCH}"
        )

    def _check_own(self) -> None:
        """Refuses links to what is outside: a run writes, cuts and deletes what it holds.

        Raises:
            ValueError: an entry is a link.
        """
        for path in self._entries():
            if path.is_symlink():
                raise ValueError(
                    f"'{path}' should be of the run itself, it is a link; put there what it leads "
                    "to, or link the whole run directory"
                )

    def check_trained(self) -> None:
        """Checks that the run can be evaluated and exported.

        Raises:
            ValueError: the run has no checkpoint yet, or another format, or is linked in part.
        """
        self._check_own()
        for needed in (self.config, self.vocabularies, self.checkpoints.path):
            if not needed.exists():
                raise ValueError(
                    f"'{self.path}' should be the directory of a trained run, but '{needed.name}' "
                    "is missing; was the training stopped?"
                )
        check_run_format(self.path)
        if not self.checkpoints.published():
            raise ValueError(
                f"'{self.path}' has no checkpoint; was the training stopped? train --resume "
                "goes on with it, or says why it cannot"
            )
