"""Root of the configuration: safe YAML, then dotted overrides, then validation."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar, get_args, get_origin

import yaml
from pydantic import ConfigDict, Field, ValidationError, model_validator

from mail_torchrec.checkpoint.settings import CheckpointSettings
from mail_torchrec.data.items.rules import check_new_items
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.settings import DataSettings
from mail_torchrec.embeddings.settings import ShardingSettings
from mail_torchrec.metrics.settings import MetricsSettings
from mail_torchrec.model.builders import ModelSettings, check_task_labels
from mail_torchrec.model.virtual_items.settings import check_virtual_items
from mail_torchrec.optim.settings import RANKING, ZERO_SHOT
from mail_torchrec.records.run_record import read_recorded
from mail_torchrec.settings import Settings, annotation_below, readable_faults
from mail_torchrec.towers.registry import check_allowed
from mail_torchrec.trackers.settings import TrackerSettings
from mail_torchrec.train.settings import TrainSettings
from mail_torchrec.utils.config_trees import is_setting_of, tree_differences
from mail_torchrec.utils.unique_keys import parse_yaml
from mail_torchrec.utils.uris import redact, without_credentials

RUN_CONFIG = "config.yaml"
"""File of a run directory with the resolved configuration."""
_PRESETS = Path(__file__).parent / "presets"
AnySettings = TypeVar("AnySettings", bound=Settings)


class Config(Settings):
    """Configuration of a run: everything that it depends on, except the data itself."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        serialize_by_alias=True,
        protected_namespaces=(),
    )

    name: str = "run"
    """Name of the run in reports; runs of one name are seeds of one method."""
    data: DataSettings
    """Files, and how they are read."""
    schema_: Schema = Field(alias="schema")
    """Columns of the files and tables of the ids."""
    model: ModelSettings = ModelSettings()
    """Towers and losses."""
    sharding: ShardingSettings = ShardingSettings()
    """Distribution of the tables over ranks."""
    train: TrainSettings = TrainSettings()
    """Length, optimizers and device."""
    checkpoint: CheckpointSettings = CheckpointSettings()
    """Checkpoints of the run."""
    metrics: MetricsSettings = MetricsSettings()
    """Metrics of evaluations, beside those by cohort."""
    trackers: list[TrackerSettings] = []
    """Services that are told of the run, such as MLflow; TensorBoard's files are written anyhow."""

    def with_dims(self, num_rows: Mapping[str, int]) -> Self:
        """Returns the configuration with a number for each `dim: auto`, see ``Schema.with_dims``.

        Args:
            num_rows: rows of every table.
        """
        return self.model_copy(update={"schema_": self.schema_.with_dims(num_rows)})

    def on_device(self, device: str, num_cores: int) -> Self:
        """Returns the configuration with the defaults of a device, ``cpu`` or ``cuda``.

        Args:
            device: of the ranks.
            num_cores: processor cores that each rank may use for itself.
        """
        return self.model_copy(update={"data": self.data.on_device(device, num_cores)})

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        data, weight = self.data, self.schema_.weight
        if weight is not None and (data.negatives_kept, data.test_negatives_kept) != (1, 1):
            raise ValueError(
                f"schema.columns.{weight} weighs the rows, and data.negatives_kept or "
                "test_negatives_kept says that unclicked rows stand for several, which a weight of "
                "1 / negatives_kept on these rows says too; give one of the two"
            )
        return self

    @model_validator(mode="after")
    def _check_items(self) -> Self:
        self.data.cold_start.check_days(self.schema_.day)
        sections = self.schema_, self.data.new_items, self.data.cold_start.items
        check_new_items(*sections)
        check_virtual_items(self.model.virtual_items, *sections)
        return self

    @model_validator(mode="after")
    def _check_tasks(self) -> Self:
        check_task_labels(self.model.tasks, self.schema_)
        return self

    @model_validator(mode="after")
    def _check_freeze(self) -> Self:
        parts = [RANKING, *([ZERO_SHOT] if self.model.has_generator else [])]
        self.train.check_freeze(self.schema_.table_names, parts)
        return self


def load_config(path: Path, overrides: list[str]) -> Config:
    """Reads a configuration file and applies ``section.key=value`` overrides.

    Values of overrides are YAML: ``null``, ``[1, 2]``, ``0.5``. Of several for one key the last
    counts. ``null`` takes an entry out of a mapping whose entries cannot be null, such as a column
    (``schema.columns.price=null``) or what is said of a table.

    Raises:
        ValueError: the file is missing or no mapping, a key is unknown or a type is wrong; every
            fault is listed with its place.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(
            f"no configuration at '{path}' ({error.strerror}); launch/configs/ holds examples"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    return _parse_config(text, path, overrides)


def load_run_config(run_dir: Path, overrides: Iterable[str] = ()) -> Config:
    """Reads the configuration of a run whose model is to be built, and applies overrides.

    A run may be of somebody else: a tower that its configuration names by an import path, and no
    override does, is not imported without a word of the user.

    Raises:
        ValueError: as :func:`recorded_config`, or the tower was not allowed.
    """
    config = recorded_config(run_dir, overrides)
    if not any(override.startswith("model.tower=") for override in overrides):
        check_allowed(config.model.tower, run_dir / RUN_CONFIG)
    return config


def recorded_config(run_dir: Path, overrides: Iterable[str] = ()) -> Config:
    """Reads the configuration of a run to be compared with another, and applies overrides.

    Raises:
        ValueError: it is missing or not what the run wrote, or as :func:`load_config`.
    """
    path = run_dir / RUN_CONFIG
    return _parse_config(read_recorded(run_dir, RUN_CONFIG), path, overrides)


def _parse_config(text: str, path: Path, overrides: Iterable[str]) -> Config:
    try:
        tree = parse_yaml(text)
    except yaml.YAMLError as error:
        raise ValueError(redact(f"{path} is not valid YAML: {error}")) from error
    if not isinstance(tree, dict):
        raise ValueError(
            f"{path} should hold sections (data, schema, ...), received {type(tree).__name__}"
        )
    for override in overrides:
        _apply(tree, override, Config)
    return _validated(Config, tree, f"{path} (with overrides)")


def parse_settings(kind: type[AnySettings], overrides: list[str]) -> AnySettings:
    """Makes one section from its defaults and ``key=value`` overrides.

    Raises:
        ValueError: as :func:`load_config`.
    """
    tree: dict[str, Any] = {}
    for override in overrides:
        _apply(tree, override, kind)
    return _validated(kind, tree, "the command line")


def preset_overrides(name: str) -> list[str]:
    """Reads a preset of the package (``presets/``) as ``section.key=value`` overrides.

    Raises:
        ValueError: there is no such preset.
    """
    path = _PRESETS / f"{name}.yaml"
    if not path.exists():
        known = ", ".join(sorted(path.stem for path in _PRESETS.glob("*.yaml")))
        raise ValueError(f"no preset '{name}'; there are: {known}")
    return [f"{key}={json.dumps(value)}" for key, value in _leaves(parse_yaml(path.read_text()))]


def _leaves(tree: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def dump_config(config: Config) -> str:
    """Formats the whole configuration, with defaults, as YAML for :func:`load_config`.

    URIs are without their credentials, which the environment has to hold when it is used again.
    """
    text: str = yaml.safe_dump(_public_tree(config), sort_keys=False, width=140)
    return text


def flat_settings(config: Config) -> dict[str, str]:
    """Returns the whole configuration by dotted names, values as text, without credentials."""
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in _leaves(_public_tree(config))
    }


def config_differences(found: Config, wanted: Config, ignored: tuple[str, ...] = ()) -> list[str]:
    """Lists the settings that differ, as ``section.key: 1 there, 2 now``.

    Args:
        found: a configuration.
        wanted: another one.
        ignored: settings that may differ; sections end with a dot.
    """
    trees = (_public_tree(config) for config in (found, wanted))
    return [
        f"{key}: {there} there, {now} now"
        for key, (there, now) in tree_differences(*trees).items()
        if not is_setting_of(key, ignored)
    ]


def _public_tree(config: Config) -> Any:
    """Returns the configuration as a tree, without credentials in URIs."""
    return _map_texts(config.model_dump(mode="json"), without_credentials)


def _map_texts(tree: Any, change: Callable[[str], str]) -> Any:
    if isinstance(tree, dict):
        return {key: _map_texts(value, change) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_map_texts(value, change) for value in tree]
    return change(tree) if isinstance(tree, str) else tree


def _apply(tree: dict[str, Any], override: str, kind: type[Settings]) -> None:
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise ValueError(
            f"an override should read section.key=value, received '{redact(override)}'"
        )
    *sections, key = dotted.split(".")
    for section in sections:
        child = tree.get(section)
        if not isinstance(child, dict | None):
            raise ValueError(
                redact(f"override '{override}': '{section}' holds the value {child!r} and no keys")
            )
        child = tree[section] = dict(child or {})  # a copy: a YAML alias may stand in two places
        tree = child
    try:
        value = parse_yaml(text, dotted)
    except yaml.YAMLError as error:
        message = redact(f"override '{override}': the value is not valid YAML: {error}")
        raise ValueError(message) from error
    if value is not None or not _has_removable_entries(kind, sections):
        tree[key] = value
    elif key in tree:
        del tree[key]
    else:
        raise ValueError(
            f"override '{override}': '{'.'.join(sections)}' has no '{key}' to take out; it has "
            f"{', '.join(map(str, tree)) or 'nothing'}"
        )


def _has_removable_entries(kind: type[Settings], sections: list[str]) -> bool:
    """Returns whether a section is a mapping of names to something other than null."""
    annotation: Any = kind
    for section in sections:
        annotation = annotation_below(annotation, section)
    if get_origin(annotation) is not dict:
        return False
    value = get_args(annotation)[1]
    return value is not Any and type(None) not in get_args(value)


def _validated(kind: type[AnySettings], tree: dict[str, Any], where: str) -> AnySettings:
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        # Pydantic's own message shows values, cut in pieces that may hold a secret.
        raise ValueError(redact(f"{where} does not fit:\n{readable_faults(error, kind)}")) from None
