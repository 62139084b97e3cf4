"""Prometheus metrics of the server.

Labels are versions, columns and statuses, never a value that a client chose.
"""

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from mail_torchrec.data.ids.policy import is_unknown
from mail_torchrec.data.schema.schema import Kind, Schema
from mail_torchrec.inference.datatypes import Array
from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.inference.requests import USER_OF_CANDIDATE, length_input

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class ServerMetrics:
    """Metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, registry=self.registry)
        self.seconds = Histogram(
            "mail_request_seconds",
            "From the decoded request to its scores.",
            ["version"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.users = counter(
            "mail_users",
            "Users scored; new ones by the zero-shot path, if there is one.",
            ["version", "kind"],
        )
        self.candidates = counter("mail_candidates", "Candidates scored.", ["version"])
        self.by_cohort = counter(
            "mail_candidates_by_cohort",
            "Candidates scored, by new and old users and items, where the model knows new items.",
            ["version", "user", "item"],
        )
        self.ids = counter("mail_ids", "Ids received.", ["version", "column"])
        self.unknown_ids = counter(
            "mail_unknown_ids", "Of them those without a row of their own.", ["version", "column"]
        )
        self.refused = counter(
            "mail_refused", "Requests that were not answered; 499: the client hung up.", ["status"]
        )
        self.closed = counter(
            "mail_connections_closed", "HTTP connections that the server closed.", ["reason"]
        )
        self.loads = counter("mail_version_loads", "Versions loaded or refused.", ["result"])
        self.serving = Gauge(
            "mail_version_serving",
            "1 for each version loaded.",
            ["version"],
            registry=self.registry,
        )

    def count(self, inputs: Mapping[str, Array], manifest: ArtifactManifest) -> None:
        """Counts the users, candidates and ids of a request.

        Args:
            inputs: checked arrays by input name, [users, ...] or [candidates, ...].
            manifest: manifest of the version that scored them.
        """
        version, is_cold_U = manifest.version, cold_users(inputs, manifest)
        self.users.labels(version, "new").inc(int(is_cold_U.sum()))
        self.users.labels(version, "old").inc(int((~is_cold_U).sum()))
        self.candidates.labels(version).inc(len(inputs[USER_OF_CANDIDATE]))
        if manifest.new_item_input is not None:
            self._count_cohorts(inputs, manifest, is_cold_U)
        for name, ids in _ids(inputs, manifest.schema_):
            self.ids.labels(version, name).inc(ids.size)
            table = manifest.tables[manifest.schema_.table_of(name)]
            unknown = is_unknown(ids, manifest.first_row + (table.fallback_rows or 0))
            self.unknown_ids.labels(version, name).inc(int(unknown.sum()))

    def _count_cohorts(
        self, inputs: Mapping[str, Array], manifest: ArtifactManifest, is_cold_U: Array
    ) -> None:
        """Counts the candidates by new and old users and items."""
        assert manifest.new_item_input is not None
        is_new_item_B = inputs[manifest.new_item_input]
        is_cold_B = is_cold_U[inputs[USER_OF_CANDIDATE]]
        for user, is_user_B in (("new", is_cold_B), ("old", ~is_cold_B)):
            for item, is_item_B in (("new", is_new_item_B), ("old", ~is_new_item_B)):
                count = int((is_user_B & is_item_B).sum())
                self.by_cohort.labels(manifest.version, user, item).inc(count)


def cold_users(inputs: Mapping[str, Array], manifest: ArtifactManifest) -> Array:
    """Tells which users the model scores without behaviours, [users], by the rule inside it.

    Args:
        inputs: arrays by input name, [users, ...] or [candidates, ...].
        manifest: manifest of the model.
    """
    if manifest.new_user_input is not None:
        return inputs[manifest.new_user_input]
    lengths = [inputs[length_input(name)] for name in manifest.schema_.sequences]
    return np.asarray(np.sum(lengths, axis=0) <= manifest.new_user_max_behaviours)


def _ids(inputs: Mapping[str, Array], schema: Schema) -> Iterator[tuple[str, Array]]:
    """Yields the ids [ids] of each column, without the padding of its lists."""
    for name, column in schema.columns.items():
        if name not in inputs or name not in schema.id_columns:
            continue
        if column.kind is Kind.CATEGORICAL:
            yield name, inputs[name]
            continue
        lengths_R = inputs[length_input(column.action_of or name)]
        yield name, inputs[name][np.arange(inputs[name].shape[1]) < lengths_R[:, None]]
