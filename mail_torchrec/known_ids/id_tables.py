"""Id encoders of a run directory or of an exported model."""

from pathlib import Path

from mail_torchrec.config import recorded_config
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.ids.policy import IdEncoder
from mail_torchrec.inference.artifact_files import MANIFEST, VOCABULARIES, checksum
from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.records.run_record import check_recorded


def read_id_tables(path: Path) -> dict[str, IdEncoder]:
    """Reads the id encoders of every table.

    Args:
        path: a run directory, or the folder of an exported model.

    Raises:
        ValueError: it is neither, or it was changed.
    """
    if (path / MANIFEST).exists():
        manifest = ArtifactManifest.read(path)
        for name, expected in manifest.files.items():
            if name.startswith(f"{VOCABULARIES}/") and checksum(path / name) != expected:
                raise ValueError(
                    f"'{path / name}' is not the file that was exported (its checksum differs); "
                    "copy or export it anew"
                )
        return Encoders.load(path / VOCABULARIES, manifest.schema_).tables
    config = recorded_config(path)
    check_recorded(path, VOCABULARIES)
    return Encoders.load(path / VOCABULARIES, config.schema_).tables


def table_of(tables: dict[str, IdEncoder], table: str, path: Path) -> IdEncoder:
    """Chooses a table.

    Raises:
        ValueError: there is none of this name, or it knows no ids.
    """
    if table not in tables:
        raise ValueError(f"--table should be one of {', '.join(tables)}, received '{table}'")
    if tables[table].values is None:
        raise ValueError(
            f"'{path}': table '{table}' knows no ids: they are hashed, or numbers in buckets; name "
            "one of ids 'managed' or 'vocabulary' by --table"
        )
    return tables[table]
