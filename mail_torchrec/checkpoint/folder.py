"""Folders of checkpoints: names, publishing, retention. Needs no torch.

``step-00000120`` is a published checkpoint. ``.step-00000120.partial`` is being written, or was
when its run was killed; renaming publishes it. ``step-00000120.damaged`` was found damaged on
resuming from the one before it, and is kept for inspection. An error in reading is not damage.
``best`` is a file that names the best checkpoint, where a run has validation rows.
"""

import os
import re
import shutil
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from mail_torchrec.utils.logging import get_logger
from mail_torchrec.utils.run_files import sync_folder, write_file
from mail_torchrec.utils.safe_paths import read_document

logger = get_logger(__name__)

_BEST = "best"
_PUBLISHED = re.compile(r"step-(\d{8,})")
DCP_METADATA = ".metadata"
"""File of ``torch.distributed.checkpoint``, for others' tools: a pickle, which is not read here."""


@dataclass(frozen=True)
class Checkpoints:
    """Manages the folder that holds the checkpoints of a run."""

    path: Path
    """The folder; it need not exist yet."""

    def published(self) -> list[Path]:
        """Lists the published checkpoints, the oldest first.

        A link counts, even where it leads nowhere: its storage may be away for a while.
        """
        found = [
            path
            for path in self._entries()
            if _PUBLISHED.fullmatch(path.name) and (path.is_symlink() or path.is_dir())
        ]
        return sorted(found, key=step_of)

    def traces(self) -> list[Path]:
        """Lists all that says that a checkpoint was published here, damaged or not."""
        return sorted(path for path in self._entries() if path.name.startswith("step-"))

    def target(self, step: int) -> Path:
        """Returns the folder of a published checkpoint."""
        return self.path / f"step-{step:08d}"

    def partial(self, step: int) -> Path:
        """Returns the folder of a checkpoint that is being written."""
        return self.path / f".step-{step:08d}.partial"

    def prepare(self, step: int) -> Path:
        """Creates the empty folder that a checkpoint is written into."""
        folder = self.partial(step)
        _delete(folder)
        folder.mkdir(parents=True)
        return folder

    def publish(self, step: int) -> Path:
        """Publishes a written checkpoint by an atomic rename."""
        folder, target = self.partial(step), self.target(step)
        sync_folder(folder)
        folder.rename(target)
        sync_folder(self.path)
        return target

    def retain(self, keep: int, best_step: int | None = None) -> None:
        """Deletes all published checkpoints but the newest ``keep`` and the best one."""
        for path in self.published()[:-keep]:
            if step_of(path) != best_step:
                self._remove(path)

    def mark_best(self, step: int | None) -> None:
        """Names the best checkpoint in the file ``best``, atomically; None deletes the file."""
        if step is None:
            (self.path / _BEST).unlink(missing_ok=True)
        elif self.best_step() != step:
            write_file(self.path / _BEST, f"{self.target(step).name}\n")

    def best_step(self) -> int | None:
        """Reads the step that the file ``best`` names; None where there is no file, or no step."""
        try:
            text = read_document(self.path / _BEST)
        except FileNotFoundError:
            return None
        except ValueError as error:  # a link or a device, say: nothing that a run wrote
            logger.warning("%s; the best checkpoint is read from the newest one", error)
            return None
        if (found := _PUBLISHED.fullmatch(text.strip())) is not None:
            return int(found[1])
        logger.warning(
            "'%s' should name a checkpoint, received %.40r; the best checkpoint is read from the "
            "newest one",
            self.path / _BEST,
            text,
        )
        return None

    def clean(self) -> None:
        """Deletes partially written and partially deleted checkpoints of killed runs."""
        for path in self._entries():
            if path.name.startswith((".step-", f".{_BEST}.")):
                _delete(path)

    def quarantine(self, path: Path) -> Path:
        """Renames a damaged checkpoint to ``*.damaged``, so that it is not used again."""
        damaged = path.with_name(f"{path.name}.damaged")
        for number in count(2):
            if not os.path.lexists(damaged):
                break
            damaged = path.with_name(f"{path.name}.damaged-{number}")
        return path.rename(damaged)

    def _entries(self) -> list[Path]:
        """Lists everything in the folder; nothing where there is no such folder.

        Raises:
            OSError: it cannot be listed, or is a link that leads nowhere.
        """
        return list(self.path.iterdir()) if os.path.lexists(self.path) else []

    def _remove(self, path: Path) -> None:
        """Deletes a checkpoint; a kill meanwhile leaves no published checkpoint without files."""
        _delete(path.rename(path.with_name(f".{path.name}.deleted")))


def step_of(path: Path) -> int:
    """Returns the step of a published checkpoint."""
    found = _PUBLISHED.match(path.name)
    assert found is not None
    return int(found[1])


def _delete(path: Path) -> None:
    """Deletes a folder or a file where there is one; of a link, the link alone."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)
