"""Manifest of an exported model: all that a client or server needs to feed and check it."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, ValidationError, model_validator

from mail_torchrec.calibration.calibrator import Calibration
from mail_torchrec.data.items.settings import NewItemSettings
from mail_torchrec.data.schema.schema import Kind, Schema, Transform
from mail_torchrec.drift.golden_behaviours import DriftInfo
from mail_torchrec.inference.artifact_files import (
    DENSE_WEIGHTS,
    GOLDEN,
    MANIFEST,
    ONNX_MODEL,
    VOCABULARIES,
    FileInfo,
    checksum,
)
from mail_torchrec.inference.requests import (
    InputSpec,
    RawColumn,
    list_of_weights,
    request_columns,
)
from mail_torchrec.inference.tables.table_info import NumericInfo, TableInfo, VectorInfo
from mail_torchrec.inference.tables.table_rows import content_checksum
from mail_torchrec.inference.values import ValueType
from mail_torchrec.settings import Settings
from mail_torchrec.utils.output_spec import OutputSpec, Role
from mail_torchrec.utils.safe_paths import PlainPath, read_document

FORMAT = 3
"""Format version of the manifest that this code writes and reads."""


class ParityInfo(Settings):
    """Difference between an artefact's golden scores and the trainer's when it was written."""

    tolerance: float
    max_difference: float


class ArtifactManifest(Settings):
    """Description of an exported model."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        serialize_by_alias=True,
        protected_namespaces=(),
    )

    format: Literal[3] = 3
    name: str
    """Name of the run."""
    version: str
    """Derived from everything else but the time, the files' checksums among it; see
    :meth:`content_version`."""
    created: str
    """Time of the export, ISO 8601 in UTC."""
    library_versions: dict[str, str]
    """Versions of the libraries that made the artefact."""
    tower: str
    """Ranking tower, as in ``model.tower``."""
    table_type: Literal["float32", "float16", "int8"]
    metrics: dict[str, Any]
    """Metrics of the training run on its test data."""
    # Left out of manifests without them, which so keep the versions that they had before.
    negatives_kept: float = Field(default=1.0, exclude_if=lambda kept: kept == 1)
    """Share of the unclicked rows in the training data, which the probabilities are corrected
    for."""
    calibration: Calibration | None = Field(default=None, exclude_if=lambda found: found is None)
    """Calibration of the clicks; None for none."""
    drift: DriftInfo | None = Field(default=None, exclude_if=lambda found: found is None)
    """Golden behaviours, which virtual ones of served users are compared with; None for none."""
    checkpoint: str | None = Field(default=None, exclude_if=lambda digest: digest is None)
    """Digest of the trained checkpoint, which runs that continue it name as their parent; None
    where no deltas to this version can be made."""
    inputs: list[InputSpec]
    """Inputs in the graph's order."""
    outputs: list[OutputSpec]
    """Outputs in the graph's order, as the towers declare them."""
    new_user_input: str | None = None
    """Input that says which users are new; None where their number of behaviours decides."""
    new_user_max_behaviours: int | None = None
    """Most behaviours, over all sequences, of a new user; None with :attr:`new_user_input`."""
    new_item_input: str | None = Field(default=None, exclude_if=lambda name: name is None)
    """Input that says which candidates are new items; None where nothing says so."""
    new_items: NewItemSettings | None = Field(default=None, exclude_if=lambda rule: rule is None)
    """Rule by which the encoder of requests fills that input; None where a column says it."""
    unknown_row: int = 0
    """Table row of a value outside the vocabulary."""
    missing_row: int = 1
    """Table row of a null."""
    first_row: int = 2
    """Table row of a vocabulary's first value. A hashed value has row ``first_row + hash64(value,
    salt) mod (rows - first_row)``."""
    lists: str = (
        "a column's padding is dropped, the newest max_length entries are kept (they end with the "
        "newest), then padded behind with 0"
    )
    hash: str = (
        "hash64 of mail_torchrec/data/ids/hashing.py: splitmix64's finaliser of (value xor FNV-1a "
        "of the salt), strings as their FNV-1a"
    )
    tables: dict[str, TableInfo]
    numeric: dict[str, NumericInfo]
    """Encoding of each numeric column."""
    vectors: dict[str, VectorInfo] = Field(default={}, exclude_if=lambda found: not found)
    """Encoding of each vector column."""
    value_types: dict[str, ValueType]
    """Value type of each raw column (of a list's elements); ids are hashed by it."""
    schema_: Schema = Field(alias="schema")
    """Columns and tables of the training run."""
    parity: dict[str, ParityInfo]
    """Difference from the trainer's golden scores of each model format."""
    files: dict[PlainPath, FileInfo]
    """Every other file, by its path in the folder."""

    @model_validator(mode="after")
    def _check_listed(self) -> Self:
        """Refuses a manifest without the checksum of a file that its readers open."""
        needed = {GOLDEN, ONNX_MODEL, DENSE_WEIGHTS}
        for table in self.tables.values():
            needed |= {*table.files.values(), *filter(None, [table.vocabulary])}
        needed |= {vectors.scales for vectors in self.vectors.values()}
        needed |= {self.drift.file} if self.drift is not None else set()
        if missing := needed - self.files.keys():
            raise ValueError(f"files should have {', '.join(sorted(missing))}")
        virtual = self.outputs_of("virtual_behaviours")
        dims = [spec.size[-1] for spec in virtual if spec.axis == "users" and spec.size]
        if self.drift is not None and self.drift.dim != sum(dims):
            raise ValueError(f"drift.dim should be {sum(dims)}, the users' virtual behaviours'")
        return self

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Reads the manifest of an artefact's folder.

        Raises:
            ValueError: no manifest, or one of another format; the message is one line.
        """
        path = folder / MANIFEST
        try:
            text = read_document(path, follow_link=True)
        except OSError as error:
            raise ValueError(
                f"'{folder}' should be what `mail-torchrec export` wrote: no {MANIFEST} there "
                f"({error.strerror})"
            ) from error
        _check_format(path, text)
        try:
            manifest = cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ValueError(
                f"'{path}' is no manifest of format {FORMAT}: "
                f"{'.'.join(map(str, first['loc']))}: {first['msg']}; export the run anew"
            ) from error
        if manifest.version != (version := manifest.content_version()):
            raise ValueError(
                f"'{path}' names version '{manifest.version}', and its content is that of "
                f"{version}: it was changed; copy or export it anew"
            )
        return manifest

    def content_version(self) -> str:
        """Derives the version from the content: a hash of everything but version and time.

        A version's name stands for its files and for how they are read.
        """
        text = self.model_dump_json(exclude={"version", "created"})
        canonical = json.dumps(json.loads(text), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def outputs_of(self, *roles: Role) -> list[OutputSpec]:
        """Selects the outputs of some roles, in the graph's order."""
        return [spec for spec in self.outputs if spec.role in roles]

    def changes_for_clients(self, other: Self) -> list[str]:
        """Lists why clients of this version cannot use another one; empty where they can.

        Raw columns and their types have to be the same, and this version's outputs have to be
        there. Other vocabularies and another ``max_length`` change nothing for raw requests.
        """
        columns, others = self._raw_columns(), other._raw_columns()
        changes = [
            f"{name}: {columns.get(name, 'none')} here, {others.get(name, 'none')} there"
            for name in sorted(columns | others)
            if columns.get(name) != others.get(name)
        ]
        known = {spec.name: (spec.axis, spec.size, spec.dtype) for spec in other.outputs}
        return changes + [
            f"output '{spec.name}': {(spec.axis, spec.size, spec.dtype)} here, "
            f"{known.get(spec.name, 'none')} there"
            for spec in self.outputs
            if known.get(spec.name) != (spec.axis, spec.size, spec.dtype)
        ]

    @property
    def paths(self) -> list[str]:
        """Paths of all other files of the version, those that have no checksum here included."""
        tables = self.tables.values()
        return [*self.files, *(one.spare.positions for one in tables if one.spare is not None)]

    def checksum(self, folder: Path, name: str) -> FileInfo:
        """Computes size and checksum of a file; of one with spare rows, of this version's rows."""
        for table in self.tables.values():
            for part, file in table.files.items():
                if file == name and table.spare is not None:
                    size, sha256 = content_checksum(folder, table, part)
                    return FileInfo(bytes=size, sha256=sha256)
        return checksum(folder / name)

    def _raw_columns(self) -> dict[str, str]:
        """Describes the values of each raw column of a request."""
        schema, raw = self.schema_, request_columns(self.schema_)
        found: dict[str, set[str]] = {}
        for side, columns in (("user", raw.user), ("candidate", raw.candidate)):
            for name, column in columns.items():  # two of the schema may be read from one
                place = f"{side} column '{name}'"
                found[place] = {self._raw_values(reader, column) for reader in column.readers}
        key = schema.file_column(schema.group_key)
        found.setdefault(f"user column '{key}'", set()).add(self.value_types[key])
        return {place: " and ".join(sorted(kinds)) for place, kinds in found.items()}

    def _raw_values(self, name: str, raw: RawColumn) -> str:
        schema = self.schema_
        column = schema.columns[name]
        kind: str = self.value_types[raw.stored.column]
        if name in schema.derived and not raw.stored.is_list:
            return kind
        if column.transform is Transform.LOG:
            kind = f"{kind} of at least 0"
        if column.kind is Kind.LIST:
            kind = f"list of {kind}"
        if column.kind is Kind.WEIGHTS:
            kind = f"weights of '{list_of_weights(name, schema)}'"
        if name in self.vectors:
            kind = f"vector of {self.vectors[name].dim} numbers"
        if column.action_of is not None:
            kind = f"{kind}, as long as '{schema.file_column(column.action_of)}'"
        return kind

    def write(self, folder: Path) -> Self:
        """Writes the manifest into the artefact's folder, and returns it with its version."""
        versioned = self.model_copy(update={"version": self.content_version()})
        (folder / MANIFEST).write_text(versioned.model_dump_json(indent=1) + "\n")
        return versioned

    def check_files(self, folder: Path) -> None:
        """Compares every file with its checksum.

        Raises:
            ValueError: a file is missing, differs, or would be read and has no checksum.
        """
        for name, expected in self.files.items():
            try:
                found = self.checksum(folder, name)
            except (FileNotFoundError, NotADirectoryError) as error:
                raise ValueError(
                    f"'{folder}' should hold '{name}': it is missing; copy the folder whole"
                ) from error
            if found != expected:
                raise ValueError(
                    f"'{folder / name}' is not the file that was exported (its checksum differs); "
                    "copy or export it anew"
                )
        vocabularies = {f"{VOCABULARIES}/{path.name}" for path in folder.glob(f"{VOCABULARIES}/*")}
        if added := sorted(vocabularies - self.files.keys()):
            raise ValueError(
                f"'{folder / added[0]}' is not in {MANIFEST}, and would be read; delete it, or "
                "export the run anew"
            )


def _check_format(path: Path, text: str) -> None:
    """Refuses a manifest of another format before its fields are validated."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"'{path}' should be JSON: {error}; copy or export it anew") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise ValueError(
            f"'{path}' should be of format {FORMAT}, received format {found}: another version of "
            "mail-torchrec wrote it; export the run anew with this one"
        )
