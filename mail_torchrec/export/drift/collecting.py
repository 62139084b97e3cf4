"""Golden behaviours of sampled users: virtual ones of the exported graph, real ones of the tables.

Shape letters: ``M`` old users, ``D`` elements.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mail_torchrec.baselines.mean_fill import MeanFill
from mail_torchrec.data.schema.schema import Group, Schema
from mail_torchrec.data.source import Source
from mail_torchrec.drift.golden_behaviours import (
    MAX_USERS,
    MIN_USERS,
    GoldenBehaviours,
    behaviour_vectors,
)
from mail_torchrec.export.compact_tables import CompactTables
from mail_torchrec.export.drift.sampled_users import SampledUsers, UserSampler
from mail_torchrec.export.finished_run import FinishedRun
from mail_torchrec.export.parity import golden_batch
from mail_torchrec.inference.artifact_files import checksum
from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.inference.requests import Request, request_columns
from mail_torchrec.inference.scorer import Scorer
from mail_torchrec.inference.values import ValueType
from mail_torchrec.model.mail import Towers

_USERS_A_CALL = 100


def check_drift(run: FinishedRun, num_users: int) -> None:
    """Checks that a model has virtual behaviours of users to be compared with real ones.

    Args:
        run: the finished run.
        num_users: users of each kind to sample.

    Raises:
        ValueError: it has none, they depend on the candidate, or they are the same for all users;
            or too few or too many users.
    """
    if not MIN_USERS <= num_users <= MAX_USERS:
        raise ValueError(
            f"--drift should be {MIN_USERS} to {MAX_USERS} users, received {num_users}"
        )
    if run.towers.virtual_source is None:
        raise ValueError(
            "--drift compares virtual behaviours with real ones, and the model makes none (no "
            "model.zero_shot, and no model.baseline that fills); leave it out"
        )
    if isinstance(run.towers.filler, MeanFill):
        raise ValueError(
            "--drift tells whether new users' virtual behaviours change, and those of "
            "model.baseline mean_fill are the same for all users; leave it out"
        )
    if run.towers.fills_candidates:
        raise ValueError(
            "--drift is of virtual behaviours that depend on the user alone, and with "
            "model.zero_shot.input_fields=all_fields they depend on the candidate; leave it out"
        )


class GoldenSample:
    """Sampled users of an export, and the table rows of the old ones' behaviours.

    Args:
        run: the finished run.
        source: Parquet file or folder of the rows.
        types: value type of each raw column.
        num_users: users of each kind to sample.

    Raises:
        ValueError: the rows hold fewer than 20 new or old users.
    """

    def __init__(
        self, run: FinishedRun, source: Source, types: dict[str, ValueType], num_users: int
    ) -> None:
        data, self.schema = run.config.data, run.config.schema_
        rule = data.cold_start.of_test, data.new_user_max_behaviours
        self.users = UserSampler(self.schema, run.encoders, *rule)(source, num_users)
        _check_enough(self.users, source)
        with TemporaryDirectory() as scratch:
            batch = golden_batch(
                self.users.old, types, run.config, run.encoders, run.feature_tables, Path(scratch)
            )
        self.compact = CompactTables(self.schema, run.feature_tables, run.encoders.num_rows, batch)

    def add(self, folder: Path, manifest: ArtifactManifest, towers: Towers) -> ArtifactManifest:
        """Adds the golden behaviours to an exported model; returns its manifest with them.

        Args:
            folder: of the model, whole but for these.
            manifest: of the model; it is in the folder, too.
            towers: trained.
        """
        scorer = Scorer(folder, verify=False)
        as_new = [without_behaviours(request, self.schema) for request in self.users.old]
        golden = GoldenBehaviours(
            virtual_vectors(scorer, self.users.new),
            virtual_vectors(scorer, as_new),
            _real_vectors(self.compact, towers),
        )
        info = golden.describe()
        golden.write(folder)
        files = manifest.files | {info.file: checksum(folder / info.file)}
        return manifest.model_copy(update={"drift": info, "files": files})


def without_behaviours(request: Request, schema: Schema) -> Request:
    """Returns a request of the same user as a new one: lists of behaviours empty.

    Args:
        request: of any user.
        schema: columns and tables.
    """
    user = dict(request.user)
    for column, raw in request_columns(schema).user.items():
        groups = {schema.columns[name].group for name in raw.readers}
        if Group.BEHAVIOUR in groups and raw.stored.is_list:
            user[column] = []
        if Group.NEW_USER in groups:
            user[column] = 1
    return Request(user, request.candidates)


def virtual_vectors(scorer: Scorer, requests: Sequence[Request]) -> NDArray[np.float32]:
    """Computes the virtual behaviours of new users as servers do, meaned over positions.

    Args:
        scorer: of the exported model.
        requests: of new users.

    Returns:
        ``[users, elements]``.
    """
    names = [spec.name for spec in scorer.manifest.outputs_of("virtual_behaviours")]
    parts = []
    for start in range(0, len(requests), _USERS_A_CALL):
        inputs = scorer.encode(requests[start : start + _USERS_A_CALL])
        found: Mapping[str, NDArray[Any]] = scorer.run(inputs, names)
        parts.append(behaviour_vectors([found[name] for name in names]))
    return np.concatenate(parts)


@torch.no_grad()
def _real_vectors(compact: CompactTables, towers: Towers) -> NDArray[np.float32]:
    """Computes the real behaviours of old users [M, D], in the order of the batch."""
    model, batch = compact.model(towers)
    tables = model.pooled_tables(batch.pooled), model.unpooled_tables(batch.unpooled)
    sequences = model.towers.user_inputs(batch, *tables).sequences
    is_row_M: NDArray[np.bool_] = batch.weights_U.numpy() > 0
    virtual = (spec for spec in towers.output_specs() if spec.role == "virtual_behaviours")
    real = (sequences[str(spec.column)] for spec in virtual)  # in the order of virtual ones
    return behaviour_vectors([sequence.real_BTD.numpy()[is_row_M] for sequence in real])


def _check_enough(users: SampledUsers, source: Source) -> None:
    if users.num_users < MIN_USERS:
        raise ValueError(
            f"--drift needs {MIN_USERS} new and {MIN_USERS} old users, and '{source.path}' has "
            f"{len(users.new)} and {len(users.old)}; give --data rows with more, or leave it out"
        )
