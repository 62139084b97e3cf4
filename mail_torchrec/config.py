"""Root of the configuration: safe YAML, then dotted overrides, then validation."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from mail_torchrec.checkpoint.settings import CheckpointSettings
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.settings import DataSettings
from mail_torchrec.embeddings.settings import ShardingSettings
from mail_torchrec.model.builders import ModelSettings
from mail_torchrec.settings import Settings
from mail_torchrec.train.settings import TrainSettings

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


def load_config(path: Path, overrides: list[str]) -> Config:
    """Reads a configuration file and applies ``section.key=value`` overrides.

    Values of overrides are YAML: ``null``, ``[1, 2]``, ``0.5``.

    Raises:
        ValueError: the file is missing or no mapping, a key is unknown or a type is wrong; every
            fault is listed with its place.
    """
    try:
        tree = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ValueError(
            f"no configuration at '{path}' ({error.strerror}); launch/configs/ holds examples"
        ) from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ValueError(
            f"{path} should hold sections (data, schema, model, ...), received "
            f"{type(tree).__name__}"
        )
    for override in overrides:
        _apply(tree, override)
    return _validated(Config, tree, f"{path} (with overrides)")


def parse_settings(kind: type[AnySettings], overrides: list[str]) -> AnySettings:
    """Makes one section from its defaults and ``key=value`` overrides.

    Raises:
        ValueError: as :func:`load_config`.
    """
    tree: dict[str, Any] = {}
    for override in overrides:
        _apply(tree, override)
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
    return [
        f"{key}={json.dumps(value)}" for key, value in _leaves(yaml.safe_load(path.read_text()))
    ]


def _leaves(tree: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def dump_config(config: Config) -> str:
    """Formats the whole configuration, with defaults, as YAML for :func:`load_config`."""
    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=140)
    return text


def config_differences(found: Config, wanted: Config) -> list[str]:
    """Lists the settings that differ, as ``section.key: 1 there, 2 now``."""
    flat = [_flat(config.model_dump(mode="json")) for config in (found, wanted)]
    keys = dict.fromkeys([*flat[0], *flat[1]])
    return [
        f"{key}: {flat[0].get(key)} there, {flat[1].get(key)} now"
        for key in keys
        if flat[0].get(key) != flat[1].get(key)
    ]


def _flat(tree: object, key: str = "") -> dict[str, object]:
    if not isinstance(tree, dict) or not tree:
        return {key: tree}
    leaves: dict[str, object] = {}
    for name, child in tree.items():
        leaves |= _flat(child, f"{key}.{name}" if key else name)
    return leaves


def _apply(tree: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise ValueError(f"an override should read section.key=value, received '{override}'")
    *sections, key = dotted.split(".")
    for section in sections:
        child = tree.get(section)
        if not isinstance(child, dict | None):
            raise ValueError(
                f"override '{override}': '{section}' holds the value {child!r} and no keys"
            )
        child = tree[section] = dict(child or {})  # a copy: a YAML alias may stand in two places
        tree = child
    try:
        tree[key] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"override '{override}': the value is not valid YAML: {error}") from error


def _validated(kind: type[AnySettings], tree: dict[str, Any], where: str) -> AnySettings:
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ValueError(f"{where} does not fit:\n{_readable(error, kind)}") from error


def _readable(error: ValidationError, kind: type[Settings]) -> str:
    """Formats every fault on a line of its own."""
    lines = []
    for fault in error.errors():
        parts, sections = _resolve_place(fault["loc"], kind)
        lines.append(f"  {'.'.join(parts) or '(root)'}: {_fault_message(fault, sections)}")
    return "\n".join(lines)


def _fault_message(fault: ErrorDetails, sections: list[list[type[Settings]]]) -> str:
    """Words one fault; ``sections`` are those of :func:`_resolve_place`."""
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        return "unknown key" + "".join(
            f"; known here: {', '.join(_fields(section))}" for section in sections[-2]
        )
    if fault["type"].startswith("union_tag"):  # a section of which there are kinds
        names = ", ".join(_name(section) for section in sections[-1])
        return f"'name' should be one of {names}, received {fault['input']!r}"
    if fault["type"] not in ("value_error", "missing"):
        message += f", received {fault['input']!r}"
    return message


def _resolve_place(
    place: tuple[int | str, ...], kind: type[Settings]
) -> tuple[list[str], list[list[type[Settings]]]]:
    """Translates pydantic's place of a fault to the configuration's.

    Pydantic puts the name of a section's kind into its places, where the configuration has no such
    level.

    Returns:
        The keys of the place, and the sections that may stand at the root and at each key.
    """
    parts: list[str] = []
    annotations: list[Any] = [kind]
    for part in map(str, place):
        sections = _sections(annotations[-1])
        if len(sections) > 1 and part in map(_name, sections):
            annotations[-1] = next(section for section in sections if _name(section) == part)
            continue
        parts.append(part)
        # dict[str, Section]: any key leads to a Section
        annotations.append(
            _fields(sections[0]).get(part)
            if len(sections) == 1
            else (get_args(annotations[-1]) or (None,))[-1]
        )
    return parts, [_sections(annotation) for annotation in annotations]


def _sections(annotation: Any) -> list[type[Settings]]:
    """Lists the sections that an annotation allows: one, those of a union, or none."""
    if get_origin(annotation) in (UnionType, Union, Annotated):
        return [section for part in get_args(annotation) for section in _sections(part)]
    return [annotation] if _is_settings(annotation) else []


def _name(section: type[Settings]) -> str:
    """Returns the name of a kind of section."""
    return str(get_args(section.model_fields["name"].annotation)[0])


def _is_settings(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Settings)


def _fields(section: type[Settings]) -> dict[str, Any]:
    return {field.alias or name: field.annotation for name, field in section.model_fields.items()}
