"""The ``mail-torchrec apply`` command: a new version beside its base, made by a delta."""

import os
import shutil
from pathlib import Path

from mail_torchrec.deltas.changed_rows import check_same_tables, read_changed
from mail_torchrec.deltas.delta_manifest import DELTA, DeltaManifest, ancestors_of
from mail_torchrec.deltas.table_writer import SMALL_TABLE_BYTES, TableChange, unused_places
from mail_torchrec.deltas.version_store import UNFINISHED, StoredVersion, VersionStore
from mail_torchrec.inference.artifact_files import MANIFEST
from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.inference.scorer import Scorer
from mail_torchrec.inference.tables.table_info import TableInfo
from mail_torchrec.utils.file_lock import lock_folder
from mail_torchrec.utils.logging import get_logger
from mail_torchrec.utils.run_files import named_errors, sync_folder

logger = get_logger(__name__)


def apply_delta(delta: Path, models: Path, *, keep: int = 3, name: str | None = None) -> Path:
    """Makes the version that a delta leads to, in the folder that holds the delta's base.

    Tables are hard links to the base's, into which the changed rows are written at places that no
    version uses. The new version is compared with all its checksums and golden requests, and then
    there under its name; before, nothing of it is to be seen.

    Args:
        delta: folder that ``mail-torchrec export --delta-of`` wrote.
        models: folder of versions.
        keep: versions of the chain to keep, the new one included; older ones are taken away.
        name: name of the new version's folder; None takes the delta's.

    Returns:
        Folder of the new version.

    Raises:
        ValueError: the delta is damaged, of another base, applied already, or finds no spare rows;
            nothing is changed.
        OSError: a file cannot be read or written; nothing is changed.
    """
    if keep < 1:
        raise ValueError(f"--keep should be at least 1, received {keep}")
    change = DeltaManifest.read(delta)
    manifest = change.check_files(delta)
    if not models.is_dir():
        raise ValueError(f"'{models}' should be a folder of versions; there is none")
    with lock_folder(models):
        store = VersionStore(models)
        base = _find_base(change, store)
        out = models / (name or delta.resolve().name)
        if os.path.lexists(out):
            raise ValueError(f"'{out}' exists already; choose another name for the version")
        tables = _plan(change, manifest, delta, base, store)
        part = models / f"{UNFINISHED}{out.name}"
        part.mkdir()
        try:
            _write_version(change, manifest, delta, base, tables, part)
            part.rename(out)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        sync_folder(models)
        store.retire([*change.ancestors, change.base, change.version], keep)
    return out


def _find_base(delta: DeltaManifest, store: VersionStore) -> StoredVersion:
    """Finds the delta's base.

    Raises:
        ValueError: it is not there, or the delta's own version is.
    """
    there = {one.manifest.version: one for one in store.listed}
    if delta.version in there:
        raise ValueError(
            f"the delta was applied before: '{there[delta.version].folder}' is version "
            f"{delta.version}"
        )
    for one in store.listed:
        if delta.version in ancestors_of(one.folder):
            raise ValueError(
                f"the delta makes version {delta.version}, which is older than "
                f"{one.manifest.version} ('{one.folder}'), which was made of it; apply newer ones"
            )
    if delta.base in there:
        return there[delta.base]
    names = ", ".join(f"{one.manifest.version} ('{one.folder.name}')" for one in store.listed)
    if earlier := [version for version in delta.ancestors if version in there]:
        raise ValueError(
            f"the delta is out of order: it should be applied to version {delta.base}, and "
            f"'{store.root}' has its ancestor {earlier[-1]}; apply the deltas between them first"
        )
    raise ValueError(
        f"the delta should be applied to version {delta.base}, and '{store.root}' has "
        f"{names or 'no version'}: it is of another base; export it with --delta-of one of these, "
        "or put its base there"
    )


def _plan(
    delta: DeltaManifest,
    manifest: ArtifactManifest,
    folder: Path,
    base: StoredVersion,
    store: VersionStore,
) -> list[TableChange]:
    """Chooses the places of all changed rows, before anything is written.

    Raises:
        ValueError: the tables are of other sizes than the base's, or spare rows are used up.
    """
    check_same_tables(base.manifest, manifest)
    changes = []
    for name, table in manifest.tables.items():
        assert table.spare is not None
        rows_C = read_changed(folder, name, table, delta.tables[name].num_changed)
        used_P = store.used_rows(base, name)
        places_C = None if used_P is None else unused_places(used_P, len(rows_C))
        if places_C is None:
            _check_small(name, table, base, used_P is None)
        changes.append(
            TableChange(
                *(name, base.folder, base.manifest.tables[name], table, folder, rows_C, places_C)
            )
        )
    return changes


def _check_small(name: str, table: TableInfo, base: StoredVersion, is_shared: bool) -> None:
    """Refuses to write a large table anew for want of spare rows."""
    size = sum((base.folder / file).stat().st_size for file in table.files.values())
    if is_shared:
        logger.warning(
            "table '%s' is written anew (%d MiB): its files have links outside of the folder",
            name,
            size >> 20,
        )
    elif size > SMALL_TABLE_BYTES:
        raise ValueError(
            f"table '{name}' has not enough unused rows in its files for the changed ones: a full "
            "export is due (`mail-torchrec export`, with a larger --spare if that comes too "
            "often); nothing was changed"
        )


def _write_version(
    delta: DeltaManifest,
    manifest: ArtifactManifest,
    source: Path,
    base: StoredVersion,
    tables: list[TableChange],
    folder: Path,
) -> None:
    """Writes all files of the new version into a hidden folder, and checks them."""
    for change in tables:
        change.write(folder)
    of_tables = {file for table in manifest.tables.values() for file in table.files.values()}
    for name in (*manifest.files, DELTA):
        if name not in of_tables:
            origin = base.folder if name in delta.base_files else source
            _copy(origin / name, folder / name)
    _copy(source / MANIFEST, folder / MANIFEST)
    scorer = Scorer(folder)
    scorer.check_golden()
    for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        sync_folder(path)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    with named_errors(target):
        shutil.copyfile(source, target)
        with target.open("rb") as file:
            os.fsync(file.fileno())
