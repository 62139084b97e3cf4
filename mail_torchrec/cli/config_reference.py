"""Markdown reference of the configuration: every key with type, default and meaning.

It is a view of the JSON Schema (``config_json_schema.py``), which comes from the settings classes.
Keys that a configuration chooses itself, such as the names of columns, are written ``NAME``.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

Node = dict[str, Any]
"""A part of a JSON Schema."""
_TYPES = {
    "integer": "integer",
    "number": "number",
    "string": "text",
    "boolean": "`true` or `false`",
    "null": "`null`",
}
_BOUNDS = {
    "minimum": ">= {:g}",
    "exclusiveMinimum": "> {:g}",
    "maximum": "<= {:g}",
    "exclusiveMaximum": "< {:g}",
}


@dataclass(frozen=True)
class ConfigKey:
    """One key of the configuration; the texts are Markdown."""

    key: str
    """Dotted, as an override names it; ``NAME`` stands for a name of the user's choice."""
    type: str
    default: str
    """``required`` where there is none; ``{}`` for a section of defaults."""
    meaning: str


@dataclass(frozen=True)
class ConfigSection:
    """One settings class at its place in the configuration."""

    path: str
    """Dotted; empty for the root."""
    condition: str
    """The setting that chooses this kind of section, such as ``model.baseline.name=llae``; several
    that choose sections of equal keys are joined by "or"."""
    meaning: str
    keys: tuple[ConfigKey, ...]


def config_sections(schema: Node) -> list[ConfigSection]:
    """Lists the sections of the configuration, each before the sections inside it.

    Args:
        schema: of a whole configuration, by ``config_json_schema``.
    """
    merged: list[ConfigSection] = []
    for section in _SchemaReader(schema["definitions"]).sections(schema):
        before = merged[-1] if merged else section
        if section.condition and (before.path, before.keys) == (section.path, section.keys):
            condition = f"{before.condition} or {section.condition}"
            merged[-1] = replace(before, condition=condition)
        elif section.keys:
            merged.append(section)
    return merged


def sections_below(
    sections: Sequence[ConfigSection], prefix: str, without: Sequence[str] = ()
) -> list[ConfigSection]:
    """Selects the keys below a dotted prefix.

    Args:
        sections: of the whole configuration.
        prefix: a section, with all sections inside it; ``root`` for the top level alone; or a key.
        without: sections that are left out.

    Raises:
        ValueError: no key is there.
    """
    paths = {section.path for section in sections}
    found = []
    for section in sections:
        if any(_is_at_or_below(section.path, other) for other in without):
            continue
        keys = tuple(key for key in section.keys if _is_selected(key, section, prefix, paths))
        if keys:
            found.append(replace(section, keys=keys))
    if not found:
        known = ", ".join(dict.fromkeys(section.path for section in sections if section.path))
        raise ValueError(f"unknown section '{prefix}'; known are root, {known}")
    return found


def _is_selected(key: ConfigKey, section: ConfigSection, prefix: str, paths: set[str]) -> bool:
    if prefix == "root":
        return not section.path
    # A section's own key belongs to the section around it.
    return _is_at_or_below(section.path, prefix) if prefix in paths else key.key == prefix


def reference_markdown(sections: Sequence[ConfigSection]) -> str:
    """Writes the whole reference, a heading a section."""
    parts = ["# Configuration reference"]
    for section in sections:
        parts += [f"## {section_title(section)}", section.meaning, section_table(section)]
    return "\n\n".join(parts) + "\n"


def section_title(section: ConfigSection) -> str:
    """Names a section by its path and by the settings that choose it."""
    title = f"`{section.path}`" if section.path else "Top level"
    chosen = " or ".join(f"`{condition}`" for condition in section.condition.split(" or "))
    return f"{title}, with {chosen}" if section.condition else title


def section_table(section: ConfigSection) -> str:
    """Writes one section's keys as a table."""
    lines = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for key in section.keys:
        cells = (f"`{key.key}`", key.type, key.default, key.meaning)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def prose(text: str) -> str:
    """Turns a docstring's first paragraph into one line of Markdown."""
    text = " ".join(text.split("\n\n")[0].split())
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text)
    return text.replace("``", "`")


def _is_at_or_below(path: str, section: str) -> bool:
    return not section or path == section or path.startswith(f"{section}.")


class _SchemaReader:
    """Reads sections and keys from a JSON Schema.

    Args:
        definitions: of the schema, which its references name.
    """

    def __init__(self, definitions: Node) -> None:
        self._definitions = definitions

    def sections(self, node: Node, path: str = "", condition: str = "") -> Iterator[ConfigSection]:
        """Yields the section at a path, then the sections inside it."""
        above = f"{path}." if path else ""
        children = {above + name: child for name, child in node.get("properties", {}).items()}
        required = {above + name for name in node.get("required", [])}
        keys = tuple(self._key(key, child, key in required) for key, child in children.items())
        yield ConfigSection(path, condition, prose(node.get("description", "")), keys)
        for key, child in children.items():
            yield from self._inside(child, key)
        for case in node.get("allOf", []):
            if "if" in case:
                yield from self._tower_options(case, above)

    def _tower_options(self, case: Node, above: str) -> Iterator[ConfigSection]:
        [(name, value)] = case["if"]["properties"].items()
        [(key, child)] = case["then"]["properties"].items()
        condition = f"{above}{name}={value['const']}"
        yield from self.sections(self._resolved(child), above + key, condition)

    def _inside(self, node: Node, path: str) -> Iterator[ConfigSection]:
        """Yields what a key may hold: no section, one, one of several kinds, or one a name."""
        kinds = self._kinds(node)
        for kind in kinds:
            if "properties" in kind:
                name = kind["properties"].get("name", {}).get("const")
                yield from self.sections(kind, path, f"{path}.name={name}" if name else "")
        for kind in kinds:
            if isinstance(child := kind.get("additionalProperties"), dict):
                yield from self._inside(child, f"{path}.NAME")

    def _key(self, key: str, node: Node, is_required: bool) -> ConfigKey:
        value = node.get("default")
        if isinstance(value, dict):  # a section's defaults stand in its own table
            value = {}
        default = "required" if is_required else f"`{_yaml(value)}`"
        meaning = node.get("description") or self._resolved(node).get("description", "")
        return ConfigKey(key, self._type(node), default, prose(meaning))

    def _kinds(self, node: Node) -> list[Node]:
        """Lists the alternatives of a value, without null."""
        node = self._resolved(node)
        for union in ("anyOf", "oneOf"):
            if union in node:
                return [kind for child in node[union] for kind in self._kinds(child)]
        return [] if node.get("type") == "null" else [node]

    def _resolved(self, node: Node) -> Node:
        """Returns a node with what its reference leads to below its description and default."""
        references = [node] if "$ref" in node else node.get("allOf", [])
        if len(references) == 1 and "$ref" in references[0]:
            target = self._definitions[references[0]["$ref"].removeprefix("#/definitions/")]
            return {**target, **{key: value for key, value in node.items() if key != "allOf"}}
        return node

    def _type(self, node: Node) -> str:
        node = self._resolved(node)
        for union in ("anyOf", "oneOf"):
            if union in node:
                return " or ".join(dict.fromkeys(map(self._type, node[union])))
        if "properties" in node:
            return "section"
        if "const" in node or "enum" in node:
            return ", ".join(f"`{value}`" for value in node.get("enum", [node.get("const")]))
        if node.get("type") == "object":
            child = node.get("additionalProperties")
            return f"map of name to {self._type(child)}" if isinstance(child, dict) else "map"
        if node.get("type") == "array":
            return self._list_type(node)
        bounds = [text.format(node[key]) for key, text in _BOUNDS.items() if key in node]
        return f"{_TYPES.get(str(node.get('type')), 'any')} {' and '.join(bounds)}".strip()

    def _list_type(self, node: Node) -> str:
        items = node.get("items", {})
        if isinstance(items, list):  # one type a position
            return f"list: {', '.join(map(self._type, items))}"
        plural = re.sub(r"^(integer|number)", r"\1s", self._type(items))
        return f"list of {plural}{', not empty' if 'minItems' in node else ''}"


def _yaml(value: Any) -> str:
    """Writes a default as one does in YAML."""
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    return value if isinstance(value, str) and value else json.dumps(value)
