"""The configuration reference and its JSON Schema hold what the settings classes hold."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
import yaml
from click.testing import CliRunner
from jsonschema import Draft7Validator
from pydantic import BaseModel

from mail_torchrec.cli import main
from mail_torchrec.cli.config_json_schema import config_json_schema
from mail_torchrec.cli.config_reference import ConfigKey, config_sections
from mail_torchrec.config import Config, load_config
from mail_torchrec.data.schema.sequences import PartSettings, SequenceSettings
from mail_torchrec.towers.registry import TOWERS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return config_json_schema()


@pytest.fixture(scope="module")
def keys(schema: dict[str, Any]) -> list[ConfigKey]:
    return [key for section in config_sections(schema) for key in section.keys]


def settings_in(annotation: Any) -> list[tuple[str, type[BaseModel]]]:
    """The settings classes of an annotation, with what stands between the key and theirs."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [("", annotation)]
    if get_origin(annotation) is dict:
        return [(".NAME" + rest, kind) for rest, kind in settings_in(get_args(annotation)[1])]
    if get_origin(annotation) in (UnionType, Union, Annotated):
        return [found for part in get_args(annotation) for found in settings_in(part)]
    return []


def keys_of(settings: type[BaseModel], path: str) -> Iterator[str]:
    for name, field in settings.model_fields.items():
        key = path + (field.alias or name)
        yield key
        for rest, kind in settings_in(field.annotation):
            yield from keys_of(kind, f"{key}{rest}.")
    if issubclass(settings, SequenceSettings):  # its parts are keys of the user's choice
        yield from keys_of(PartSettings, f"{path}NAME.")


def test_every_key_of_the_settings_classes_is_in_the_reference(keys: list[ConfigKey]) -> None:
    wanted = set(keys_of(Config, ""))
    for tower in TOWERS.values():
        wanted |= set(keys_of(tower.Settings, "model.tower_options."))
    assert {key.key for key in keys} == wanted
    assert {"schema.columns.NAME.group", "model.baseline.step_size"} <= wanted


def test_every_key_has_a_type_a_default_and_a_meaning(keys: list[ConfigKey]) -> None:
    assert [key.key for key in keys if not (key.type and key.default and key.meaning)] == []


def test_types_and_defaults_are_those_of_the_classes(keys: list[ConfigKey]) -> None:
    rows = {key.key: (key.type, key.default) for key in keys}
    assert rows["train.batch_size"] == ("integer >= 2", "`1024`")
    assert rows["data.root"] == ("text", '`""`')
    assert rows["data.cold_start.hide_share"] == ("number >= 0 and <= 1", "`0.0`")
    assert rows["schema.columns"] == ("map of name to section", "required")
    assert rows["model.zero_shot"] == ("section or `null`", "`{}`")
    assert rows["model.zero_shot.encoder_dims"][1] == "`[1024, 512, 512]`"
    assert rows["model.new_user_tower"] == ("`shared`, `own`", "`shared`")
    assert rows["train.betas"] == ("list: number, number", "`[0.9, 0.999]`")


def test_one_section_can_be_printed_alone() -> None:
    printed = CliRunner().invoke(main, ["config", "--reference", "--section", "sharding"]).output
    rows = [line for line in printed.splitlines() if line.startswith("| `")]
    assert rows and all(row.startswith("| `sharding.") for row in rows)
    failed = CliRunner().invoke(main, ["config", "--reference", "--section", "shard"])
    assert (
        failed.exit_code == 1 and "unknown section 'shard'; known are root, data" in failed.output
    )


def test_config_asks_what_to_print() -> None:
    assert "--reference" in CliRunner().invoke(main, ["config"]).output
    both = CliRunner().invoke(main, ["config", "--json-schema", "--section", "train"])
    assert both.exit_code == 2 and "leave out --section" in both.output


def test_its_help_needs_no_torch() -> None:
    code = (
        "import sys; from mail_torchrec.cli import main; main(['config', '--help'], "
        "standalone_mode=False); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)


def test_the_json_schema_is_valid_and_accepts_the_example_configurations() -> None:
    schema = json.loads(CliRunner().invoke(main, ["config", "--reference", "--json-schema"]).output)
    Draft7Validator.check_schema(schema)
    examples = sorted((ROOT / "launch/configs").glob("*.yaml"))
    assert len(examples) >= 3
    for path in examples:
        assert list(Draft7Validator(schema).iter_errors(yaml.safe_load(path.read_text()))) == []


@pytest.mark.parametrize("override", [
    "train.epoch=3", "epochs=3", "train.epochs=many", "train.epochs=0", "train.betas=[0.9]",
    "data.cold_start.share=0.1", "schema.dim=wide", "schema.columns.user.groups=label",
    "schema.columns.user.group=people", "schema.tables.action.init=1", "model.zero_shot.sigma=0",
    "model.baseline={name: lae}", "model.baseline={name: llae, scale: 1}", "model.baseline={}",
    "model.tower_options={widths: [8]}", "model.tower_options={match_weight: -1}",
    "sharding.constraints={video: {sharding_types: [by_row]}}",
    "sharding.sharding_types=[]",
    "checkpoint.mode=later",
])  # fmt: skip
def test_the_json_schema_rejects_what_the_project_refuses(
    schema: dict[str, Any], override: str
) -> None:
    tree = yaml.safe_load((ROOT / "launch/configs/kuairand.yaml").read_text())
    key, _, value = override.partition("=")
    *sections, last = key.split(".")
    node = tree
    for section in sections:
        node = node.setdefault(section, {})
    node[last] = yaml.safe_load(value)
    assert not Draft7Validator(schema).is_valid(tree)


def test_the_json_schema_checks_options_against_the_tower_that_is_named(
    schema: dict[str, Any],
) -> None:
    tree = yaml.safe_load((ROOT / "launch/configs/kuairand.yaml").read_text())
    tree["model"] = {"tower": "din", "tower_options": {"activation": "prelu"}}
    assert Draft7Validator(schema).is_valid(tree)
    tree["model"]["tower"] = "base_dnn"
    assert not Draft7Validator(schema).is_valid(tree)
    tree["model"]["tower"] = "my_package.towers:MyTower"
    assert Draft7Validator(schema).is_valid(tree)


def test_the_json_schema_accepts_a_resolved_configuration(schema: dict[str, Any]) -> None:
    config = load_config(
        ROOT / "launch/configs/kuairand.yaml",
        ["model.zero_shot=null", "model.baseline={name: meta_emb}", "model.multi_task={}"],
    )
    assert list(Draft7Validator(schema).iter_errors(config.model_dump(mode="json"))) == []
