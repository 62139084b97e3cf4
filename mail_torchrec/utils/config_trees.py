"""Differences of configurations as trees, and the settings that cannot change a run's metrics."""

from collections.abc import Mapping
from fnmatch import fnmatchcase

NEUTRAL_SETTINGS = (
    "trackers",
    "checkpoint.every",
    "checkpoint.keep",
    "checkpoint.mode",
    "checkpoint.on_failure",
    "checkpoint.grace",
    "checkpoint.touched_rows",
    "metrics.",
    "sharding.enabled",
    "sharding.sharding_types",
    "sharding.compute_kernels",
    "sharding.constraints",
    "sharding.constraints.",
    "sharding.cache_load_factor",
    "sharding.ssd_directory",
    "sharding.min_partition",
    "sharding.prefetch",
    "sharding.pooling_factors",
    "sharding.pooling_factors.",
    "data.root",
    "data.train",
    "data.train.",
    "data.test",
    "data.test.",
    "data.validation.path",
    "data.validation.path.",
    "data.num_workers",
    "data.shape_buckets",
    "train.eval_batch_size",
    "train.log_every",
    "train.device",
    "train.timeout",
    "train.save_predictions",
    "train.compile",
    "train.compile_mode",
    "train.profile",
    "train.profile.",
)
"""Settings of the machine and of the logs, and places of the data: runs that differ in these alone
are equal up to rounding and the order of rows (sections end with a dot). Whether the data behind
other paths is the same is not in a configuration; a run records it in ``data.json``."""


def tree_differences(found: object, wanted: object) -> dict[str, tuple[object, object]]:
    """Finds the settings that differ between two configurations.

    Args:
        found: a configuration as a tree of mappings, as its YAML file holds it.
        wanted: another one.

    Returns:
        Dotted key -> value in ``found`` and in ``wanted``. A missing key counts as null, since an
        older version did not write it.
    """
    first, second = _leaves(found), _leaves(wanted)
    return {
        key: (first.get(key), second.get(key))
        for key in dict.fromkeys([*first, *second])
        if first.get(key) != second.get(key)
    }


def is_setting_of(key: str, settings: tuple[str, ...]) -> bool:
    """Returns whether a dotted key is one of these settings, or lies in one of these sections.

    Args:
        key: of a setting.
        settings: keys, in which ``*`` stands for any name; sections end with a dot.
    """
    return any(
        key.startswith(name) if name.endswith(".") else fnmatchcase(key, name) for name in settings
    )


def _leaves(tree: object, key: str = "") -> dict[str, object]:
    if not isinstance(tree, Mapping) or not tree:
        return {key: tree}
    leaves: dict[str, object] = {}
    for name, child in tree.items():
        leaves |= _leaves(child, f"{key}.{name}" if key else str(name))
    return leaves
