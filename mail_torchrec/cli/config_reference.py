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
    for section in _walk(schema, schema["definitions"], "", ""):
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
    paths = [section.path for section in sections]
    found = []
    for section in sections:
        if any(_is_at_or_below(section.path, other) for other in without):
            continue
        if prefix in paths:  # the section's own key belongs to the section around it
            keys = section.keys if _is_at_or_below(section.path, prefix) else ()
        elif prefix == "root":
            keys = section.keys if not section.path else ()
        else:
            keys = tuple(key for key in section.keys if key.key == prefix)
        if keys:
            found.append(replace(section, keys=keys))
    if not found:
        known = ", ".join(dict.fromkeys(path for path in paths if path))
        raise ValueError(f"unknown section '{prefix}'; known are root, {known}")
    return found


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


def _walk(node: Node, definitions: Node, path: str, condition: str) -> Iterator[ConfigSection]:
    above = f"{path}." if path else ""
    properties: dict[str, Node] = node.get("properties", {})
    required = node.get("required", [])
    keys = tuple(
        _key(above + name, child, definitions, name in required)
        for name, child in properties.items()
    )
    yield ConfigSection(path, condition, prose(node.get("description", "")), keys)
    for name, child in properties.items():
        yield from _inside(child, definitions, above + name)
    for case in node.get("allOf", []):
        if "if" in case:  # a tower's options
            [(name, value)] = case["if"]["properties"].items()
            [(options, child)] = case["then"]["properties"].items()
            yield from _walk(
                _resolved(child, definitions),
                definitions,
                above + options,
                f"{above}{name}={value['const']}",
            )


def _inside(node: Node, definitions: Node, path: str) -> Iterator[ConfigSection]:
    """The sections that a key may hold: none, one, one of several kinds, or one a name."""
    kinds = [kind for kind in _kinds(node, definitions) if "properties" in kind]
    for kind in kinds:
        name = kind["properties"].get("name", {}).get("const")
        yield from _walk(kind, definitions, path, f"{path}.name={name}" if name else "")
    for kind in _kinds(node, definitions):
        if isinstance(children := kind.get("additionalProperties"), dict):
            yield from _inside(children, definitions, f"{path}.NAME")


def _kinds(node: Node, definitions: Node) -> list[Node]:
    """The alternatives of a value, without null."""
    node = _resolved(node, definitions)
    for union in ("anyOf", "oneOf"):
        if union in node:
            return [kind for child in node[union] for kind in _kinds(child, definitions)]
    return [] if node.get("type") == "null" else [node]


def _resolved(node: Node, definitions: Node) -> Node:
    """A node with what its reference leads to below its own description and default."""
    references = [node] if "$ref" in node else node.get("allOf", [])
    if len(references) == 1 and "$ref" in references[0]:
        target = definitions[references[0]["$ref"].removeprefix("#/definitions/")]
        return {**target, **{key: value for key, value in node.items() if key != "allOf"}}
    return node


def _key(key: str, node: Node, definitions: Node, is_required: bool) -> ConfigKey:
    value = node.get("default")
    if isinstance(value, dict):  # a section's defaults stand in its own table
        value = {}
    meaning = node.get("description") or _resolved(node, definitions).get("description", "")
    default = "required" if is_required else f"`{_yaml(value)}`"
    return ConfigKey(key, _type(node, definitions), default, prose(meaning))


def _type(node: Node, definitions: Node) -> str:
    node = _resolved(node, definitions)
    for union in ("anyOf", "oneOf"):
        if union in node:
            return " or ".join(dict.fromkeys(_type(kind, definitions) for kind in node[union]))
    if "properties" in node:
        return "section"
    if "const" in node or "enum" in node:
        return ", ".join(f"`{value}`" for value in node.get("enum", [node.get("const")]))
    kind = node.get("type")
    if kind == "object":
        children = node.get("additionalProperties")
        return (
            f"map of name to {_type(children, definitions)}"
            if isinstance(children, dict)
            else "map"
        )
    bounds = " and ".join(text.format(node[key]) for key, text in _BOUNDS.items() if key in node)
    if kind == "array":
        items = node.get("items", {})
        if isinstance(items, list):
            return f"list: {', '.join(_type(item, definitions) for item in items)}"
        plural = re.sub(r"^(integer|number)", r"\1s", _type(items, definitions))
        return f"list of {plural}{', not empty' if 'minItems' in node else ''}"
    return f"{_TYPES.get(str(kind), 'any')} {bounds}".strip()


def _yaml(value: Any) -> str:
    """A default as one writes it in YAML."""
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    return value if isinstance(value, str) and value else json.dumps(value)
