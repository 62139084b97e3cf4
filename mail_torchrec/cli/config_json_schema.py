"""JSON Schema of the configuration, made from the settings classes.

Its dialect is draft 7, which the YAML plugins of editors read.
"""

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from mail_torchrec.config import Config
from mail_torchrec.model.builders import ModelSettings
from mail_torchrec.settings import Settings
from mail_torchrec.towers.registry import TOWERS

_DRAFT = "http://json-schema.org/draft-07/schema#"


def config_json_schema() -> dict[str, Any]:
    """Builds the JSON Schema of a whole configuration file.

    Descriptions are the attribute docstrings of the settings classes; unknown keys are errors.
    ``model.tower_options`` is checked against the settings of the tower that ``model.tower`` names,
    where that tower comes with the project.
    """
    towers = {name: settings_class_of_tower(name) for name in TOWERS}
    classes: dict[type[BaseModel], None] = dict.fromkeys([Config, *towers.values()])
    references, found = models_json_schema([(kind, "validation") for kind in classes])
    definitions = found["$defs"]
    root = definitions.pop(Config.__name__)
    definitions[ModelSettings.__name__]["allOf"] = [
        _options_of_tower(name, references[kind, "validation"]) for name, kind in towers.items()
    ]
    schema: dict[str, Any] = _as_draft_7({**root, "$defs": definitions})
    return {"$schema": _DRAFT, **schema, "title": "mail-torchrec configuration"}


def settings_class_of_tower(name: str) -> type[Settings]:
    """The class that validates ``model.tower_options`` of a tower that comes with the project."""
    tower: Any = TOWERS[name]
    found: type[Settings] = tower.Settings
    return found


def _options_of_tower(name: str, reference: dict[str, Any]) -> dict[str, Any]:
    is_this_tower: dict[str, Any] = {"properties": {"tower": {"const": name}}}
    if name != ModelSettings.model_fields["tower"].default:
        is_this_tower["required"] = ["tower"]
    return {"if": is_this_tower, "then": {"properties": {"tower_options": reference}}}


def _as_draft_7(node: Any) -> Any:
    """Rewrites what draft 2020-12, pydantic's dialect, says in another way than draft 7."""
    if isinstance(node, list):
        return [_as_draft_7(child) for child in node]
    if not isinstance(node, dict):
        return node
    node = {key: child if key == "default" else _as_draft_7(child) for key, child in node.items()}
    if "$defs" in node:
        node["definitions"] = node.pop("$defs")
    if "prefixItems" in node:
        node |= {"items": node.pop("prefixItems"), "additionalItems": False}
    node.pop("discriminator", None)  # OpenAPI's; the kinds tell themselves apart by a constant name
    if "$ref" in node:
        reference = node.pop("$ref").replace("#/$defs/", "#/definitions/")
        # Draft 7 ignores what stands beside a $ref: a description, a default.
        node = {**node, "allOf": [{"$ref": reference}]} if node else {"$ref": reference}
    return node
