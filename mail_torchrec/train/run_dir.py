"""What a run directory holds, by name."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from mail_torchrec.checkpoint.folder import Checkpoints
from mail_torchrec.distributed.collectives import from_rank_0
from mail_torchrec.distributed.launcher import num_restarts
from mail_torchrec.utils.file_lock import locked

# Seconds that a restarted job waits for the lock: ranks of the one before it may still be ending,
# on another host.
_PATIENCE = 120.0
# One that is started again by hand, which knows that nothing runs: ranks whose launcher was killed
# end a second after it.
_PATIENCE_BY_HAND = 5.0


@dataclass(frozen=True)
class RunDir:
    """Names the parts of a run directory.

    ::

        .lock                who writes here now, or did last
        config.yaml          the resolved configuration
        vocabularies/        raw values -> table rows, scales of numeric columns
        plan.json            which rank holds which part of which table
        metrics.jsonl        losses and rows/s on the way
        loss_curves.png      the same as a picture
        tensorboard/         the same for TensorBoard
        checkpoints/         states on the way, and that of the end
        predictions.npz      score, label, user and part of every test row, where train.save_predictions asks for them
        metrics.json         final AUC and GAUC for new, old and all rows; written last
    """

    path: Path

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
        """Losses on the way, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def curves(self) -> Path:
        """Loss curves."""
        return self.path / "loss_curves.png"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
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
    def metrics(self) -> Path:
        """Final metrics."""
        return self.path / "metrics.json"

    @contextmanager
    def held(self, *, resume: bool) -> Iterator[None]:
        """Keeps other jobs out for the block; every rank calls it.

        A job that goes on waits for the last ranks of the one before it.

        Raises:
            ValueError: another job holds the directory.
        """
        with ExitStack() as lock:
            patience = _PATIENCE if num_restarts() else _PATIENCE_BY_HAND if resume else 0.0
            from_rank_0(lambda: lock.enter_context(locked(self.path, patience)))
            yield

    def open(self, *, resume: bool) -> None:
        """Makes the directory, or opens it for a run that goes on.

        Raises:
            ValueError: it already holds a run, which is not to be resumed.
        """
        if self.config.exists() and not resume:
            state, remedy = (
                ("finished", "")
                if self.metrics.exists()
                else ("unfinished", "add --resume to go on with it, or ")
            )
            raise ValueError(
                f"run directory '{self.path}' already holds a run ({state}); {remedy}choose "
                "another --run-dir, or move or delete that one"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self.checkpoints.clean()

    def check(self) -> None:
        """Raises ValueError where there is nothing to evaluate."""
        for needed in (self.config, self.vocabularies, self.checkpoints.path):
            if not needed.exists():
                raise ValueError(
                    f"'{self.path}' should be the directory of a trained run, but '{needed.name}' "
                    "is missing; was the training stopped?"
                )
        if not self.checkpoints.published():
            raise ValueError(
                f"'{self.path}' has no checkpoint yet; was the training stopped? train --resume "
                "goes on with it"
            )
