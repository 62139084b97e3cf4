"""Deltas: what is new in an artefact since an earlier version of it.

Shapes: ``R`` rows of a table, ``C`` changed rows.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mail_torchrec.checkpoint.manifest import checkpoint_digest
from mail_torchrec.checkpoint.touched import read_touched
from mail_torchrec.continuation.parent_record import read_parent
from mail_torchrec.deltas.changed_rows import (
    Flags,
    check_same_tables,
    differing_rows,
    write_changed,
)
from mail_torchrec.deltas.delta_manifest import (
    DELTA,
    TOMBSTONES,
    ChangedTable,
    DeltaManifest,
    ancestors_of,
)
from mail_torchrec.export.stored_weights import weights_folder
from mail_torchrec.inference.artifact_files import MANIFEST, VOCABULARIES, checksums
from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.utils.logging import get_logger

logger = get_logger(__name__)

_BY_OPTION = {
    "drift": (
        "golden behaviours",
        "servers will measure no drift of the new version; give --drift to go on",
    ),
    "calibration": (
        "a calibration",
        "the new version's probabilities will have none; give --calibrate to go on",
    ),
}
"""Parts of a manifest that an export has by an option: what they are, and what their lack means."""


@dataclass(frozen=True)
class DeltaBase:
    """Version that a delta is to be applied to."""

    folder: Path
    """Folder of the version, or of the delta that makes it."""
    manifest: ArtifactManifest

    @staticmethod
    def open(folder: Path) -> "DeltaBase":
        """Reads the manifest of an artefact or delta.

        Raises:
            ValueError: there is none, or it was exported without spare rows.
        """
        manifest = ArtifactManifest.read(folder)
        if any(table.spare is None for table in manifest.tables.values()):
            raise ValueError(
                f"--delta-of: '{folder}' has no spare rows for changed ones; export it with "
                "--spare 0.2"
            )
        return DeltaBase(folder, manifest)

    @property
    def capacities(self) -> dict[str, int]:
        """Rows of each table's files."""
        spare = {name: table.spare for name, table in self.manifest.tables.items()}
        return {name: rows.capacity for name, rows in spare.items() if rows is not None}

    @property
    def has_tables(self) -> bool:
        """True where the tables are in the folder."""
        return not (self.folder / DELTA).exists() or all(
            (self.folder / file).exists()
            for table in self.manifest.tables.values()
            for file in table.files.values()
        )


def write_delta(
    base: DeltaBase, whole: Path, manifest: ArtifactManifest, run_dir: Path, out: Path
) -> DeltaManifest:
    """Writes the changes from a base to a whole artefact.

    Rows are compared with the base's where its tables are there; else all rows count as changed
    that the runs since then have touched.

    Args:
        base: the version that the delta is applied to.
        whole: folder of the artefact.
        manifest: its manifest.
        run_dir: the run that it was exported from.
        out: folder of the delta.

    Raises:
        ValueError: they are one version, have other tables, or it cannot be told what changed.
    """
    if manifest.version == base.manifest.version:
        raise ValueError(
            f"'{base.folder}' is version {manifest.version} already: nothing has changed since"
        )
    check_same_tables(base.manifest, manifest)
    _warn_of_losses(base, manifest)
    touched = None if base.has_tables else touched_since(base, run_dir)
    tables = {}
    for name, table in manifest.tables.items():
        if touched is None:
            rows_C = differing_rows(base.folder, base.manifest.tables[name], whole, table)
        else:
            rows_C = np.flatnonzero(touched[name][: table.rows])
        write_changed(whole, table, rows_C, out, name)
        num_gone = _write_tombstones(base, whole, manifest, name, out)
        tables[name] = ChangedTable(num_changed=len(rows_C), num_gone=num_gone)
        logger.info(
            "table '%s': %d of %d rows changed, %d ids gone",
            *(name, len(rows_C), table.rows, num_gone),
        )
    of_tables = {file for table in manifest.tables.values() for file in table.files.values()}
    others = [name for name in manifest.files if name not in of_tables]
    same = [name for name in others if manifest.files[name] == base.manifest.files.get(name)]
    for name in (MANIFEST, *(name for name in others if name not in same)):
        (out / name).parent.mkdir(exist_ok=True)
        shutil.move(whole / name, out / name)
    return DeltaManifest(
        base=base.manifest.version,
        version=manifest.version,
        ancestors=ancestors_of(base.folder),
        tables=tables,
        base_files=same,
        files=checksums(out, skipped=(whole.name,)),
    ).write(out)


def _warn_of_losses(base: DeltaBase, manifest: ArtifactManifest) -> None:
    """Warns of what options brought into the base and would have to bring into a delta anew."""
    for part, (what, remedy) in _BY_OPTION.items():
        if getattr(base.manifest, part) is not None and getattr(manifest, part) is None:
            logger.warning("'%s' has %s, and the delta has none: %s", base.folder, what, remedy)


def _write_tombstones(
    base: DeltaBase, whole: Path, manifest: ArtifactManifest, table: str, out: Path
) -> int:
    """Writes the ids that the base knew and the artefact does not; returns their number.

    A base that is a delta itself lacks a vocabulary that was as in the version before: then none
    is known to be gone.
    """
    file = manifest.tables[table].vocabulary
    is_same = file is None or manifest.files[file] == base.manifest.files.get(file)
    if is_same or table not in manifest.schema_.table_names:
        return 0
    policy = manifest.schema_.id_policy(table)
    if not (base.folder / str(file)).exists():
        logger.warning("table '%s': '%s' has no %s, so no tombstones", table, base.folder, file)
        return 0
    before, after = (policy.load(path / VOCABULARIES).values for path in (base.folder, whole))
    if before is None or after is None:
        return 0
    known = pc.is_in(before, value_set=after.cast(before.type))
    gone = before.filter(pc.invert(known)).drop_null()
    if len(gone):
        (out / TOMBSTONES).mkdir(exist_ok=True)
        pq.write_table(pa.table({"value": gone}), out / TOMBSTONES / f"{table}.parquet")
    return len(gone)


def touched_since(base: DeltaBase, run_dir: Path) -> dict[str, Flags]:
    """Reads which rows [R] of each table were touched since the base's checkpoint.

    Raises:
        ValueError: the run does not continue that checkpoint, or a run between is gone.
    """
    touched: dict[str, Flags] = {}
    folder, run = weights_folder(RunDir(run_dir)), run_dir
    while checkpoint_digest(folder) != base.manifest.checkpoint:
        for name, flags_R in read_touched(folder).items():
            touched[name] = touched.get(name, np.zeros_like(flags_R)) | flags_R
        if (record := read_parent(run)) is None:
            raise ValueError(
                f"--delta-of: '{base.folder}' has no tables to compare with, and '{run_dir}' does "
                "not continue the run that it was exported from; name an artefact with tables"
            )
        if record.parent.checkpoint == base.manifest.checkpoint:
            break
        run = Path(record.parent.run)
        folder = weights_folder(RunDir(run))
    return touched
