"""Paths, format and lock of a run directory."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from mail_torchrec.checkpoint.folder import Checkpoints
from mail_torchrec.distributed.collectives import broadcast_from_rank_0
from mail_torchrec.distributed.launcher import num_restarts
from mail_torchrec.utils.file_lock import lock_folder
from mail_torchrec.utils.formats import check_run_format, write_run_format
from mail_torchrec.utils.local_path import check_local

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
        run.json             format of this directory, and the version that made it
        config.yaml          the resolved configuration
        vocabularies/        raw values -> table rows, scales of numeric columns
        plan.json            which rank holds which part of which table
        metrics.jsonl        losses and rows/s during the training
        loss_curves.png      the same as a picture
        tensorboard/         the same for TensorBoard
        checkpoints/         states during the training, and at its end
        predictions.npz      scores of all test rows, where train.save_predictions asks for them
        data.json            fingerprints of the training and test data, checksum of the test rows
        metrics.json         final AUC and GAUC of new, old and all rows; written last
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
    def predictions(self) -> Path:
        """Scores of the test rows."""
        return self.path / "predictions.npz"

    @property
    def data(self) -> Path:
        """Record of the data that the metrics belong to, see ``checkpoint/data_record.py``."""
        return self.path / "data.json"

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
        with ExitStack() as stack:
            broadcast_from_rank_0(lambda: stack.enter_context(lock_folder(self.path, timeout)))
            yield

    def open(self, *, resume: bool) -> None:
        """Creates the directory of a new run, or opens it for a run that is resumed.

        Raises:
            ValueError: it holds a run that is not to be resumed, or a run of another format.
        """
        if self.config.exists():
            if not resume:
                raise ValueError(self._occupied())
            check_run_format(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        write_run_format(self.path, version("mail-torchrec"))
        self.checkpoints.clean()

    def _occupied(self) -> str:
        finished = self.metrics.exists()
        remedy = "" if finished else "add --resume to go on with it, or "
        return (
            f"run directory '{self.path}' already holds a run "
            f"({'finished' if finished else 'unfinished'}); {remedy}choose another --run-dir, or "
            "move or delete that one"
        )

    def check_trained(self) -> None:
        """Checks that the run can be evaluated and exported.

        Raises:
            ValueError: the run has no checkpoint yet, or another format.
        """
        for needed in (self.config, self.vocabularies, self.checkpoints.path):
            if not needed.exists():
                raise ValueError(
                    f"'{self.path}' should be the directory of a trained run, but '{needed.name}' "
                    "is missing; was the training stopped?"
                )
        check_run_format(self.path)
        if not self.checkpoints.published():
            raise ValueError(
                f"'{self.path}' has no checkpoint yet; was the training stopped? train --resume "
                "goes on with it"
            )
