"""What Prometheus is told. Labels are versions, columns and statuses; never what a client made up."""

from collections.abc import Mapping

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from mail_torchrec.data.schema.schema import Group, Kind, Schema
from mail_torchrec.inference.manifest import Manifest
from mail_torchrec.serve.tensors import Array

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.seconds = Histogram(
            "mail_request_seconds",
            "From the decoded request to its scores.",
            ["version"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.users = Counter(
            "mail_users",
            "Users scored; new ones by the zero-shot path, if there is one.",
            ["version", "kind"],
            registry=registry,
        )
        self.candidates = Counter(
            "mail_candidates", "Candidates scored.", ["version"], registry=registry
        )
        self.ids = Counter("mail_ids", "Ids received.", ["version", "column"], registry=registry)
        self.unknown_ids = Counter(
            "mail_unknown_ids",
            "Of them those outside the vocabulary.",
            ["version", "column"],
            registry=registry,
        )
        self.refused = Counter(
            "mail_refused", "Requests that were not answered.", ["status"], registry=registry
        )
        self.loads = Counter(
            "mail_version_loads", "Versions loaded or refused.", ["result"], registry=registry
        )
        self.serving = Gauge(
            "mail_version_serving", "1 for each version loaded.", ["version"], registry=registry
        )

    def count(self, inputs: Mapping[str, Array], manifest: Manifest) -> None:
        """Counts what was asked, from checked inputs."""
        schema, version = manifest.schema_, manifest.version
        new_U = is_new(inputs, manifest)
        self.users.labels(version, "new").inc(int(new_U.sum()))
        self.users.labels(version, "old").inc(int((~new_U).sum()))
        self.candidates.labels(version).inc(len(inputs["candidate.user"]))
        for name, ids in _ids(inputs, schema).items():
            self.ids.labels(version, name).inc(ids.size)
            self.unknown_ids.labels(version, name).inc(int((ids == manifest.unknown_row).sum()))


def is_new(inputs: Mapping[str, Array], manifest: Manifest) -> Array:
    """Whether each user is new, [users], by the rule inside the model."""
    schema, rule = manifest.schema_, manifest.new_users
    if "input" in rule:
        return inputs[str(rule["input"])]
    behaviours_U = np.sum([inputs[f"{name}.length"] for name in schema.sequences], axis=0)
    return np.asarray(behaviours_U <= rule["at_most_behaviours"])


def _ids(inputs: Mapping[str, Array], schema: Schema) -> dict[str, Array]:
    """The ids of each column, without what pads its lists."""
    found = {}
    for name, column in schema.columns.items():
        if name not in inputs or column.group is Group.NEW_USER or column.kind is Kind.NUMERIC:
            continue
        if column.kind is Kind.CATEGORICAL:
            found[name] = inputs[name]
        else:
            lengths = inputs[f"{column.action_of or name}.length"]
            found[name] = inputs[name][np.arange(inputs[name].shape[1]) < lengths[:, None]]
    return found
