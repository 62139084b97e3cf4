"""YAML and JSON in which no key of a mapping stands twice, of bounded size and depth.

Both formats forbid repeated keys, but PyYAML and ``json`` keep the last value without a word.
Aliases (``*name``) make a YAML document of a few lines arbitrarily large, or hold itself.
"""

import json
from collections import deque
from collections.abc import Hashable, Iterator
from typing import Any

import yaml

_MAX_NODES = 100_000
"""Most values of a document, every alias replaced by what it stands for."""


class RepeatedKeyError(yaml.YAMLError):
    """Error of a key that stands twice in one mapping."""


def parse_yaml(text: str, above: str = "") -> Any:
    """Parses one YAML document with the tags of ``yaml.safe_load``.

    Keys are equal where their parsed values are: ``yes`` and ``true``, ``1`` and ``0x1``. What a
    merge key (``<<``) brings may be overridden.

    Args:
        text: the document.
        above: dotted path that the document stands at, for messages.

    Raises:
        yaml.YAMLError: it is no valid YAML, a key stands twice, or it is nested too deeply, too
            large, or holds itself.
    """
    loader = yaml.SafeLoader(text)
    try:
        document = loader.get_single_node()
        if document is None:
            return None
        _count_nodes(document, {})
        for path, first, second in _repeated_keys(loader, document, above):
            raise RepeatedKeyError(
                f"key '{path}' should stand once, received it {_places(first, second)}; keep one "
                "of them, with the content of both"
            )
        return loader.construct_document(document)
    except (ValueError, OverflowError) as error:  # a date that there is not, such as 2023-02-30
        raise yaml.YAMLError(str(error)) from error
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply; write it flatter") from None
    finally:
        loader.dispose()


def parse_json(text: str) -> Any:
    """Parses JSON.

    Raises:
        ValueError: it is no valid JSON, a key stands twice, or it is nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique_pairs)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _count_nodes(node: yaml.Node, counts: dict[int, int]) -> int:
    """Counts the values of a node, every alias replaced by what it stands for.

    Args:
        node: a value, list or mapping.
        counts: number of values of every node that was counted; 0 for one that is being counted.

    Raises:
        yaml.YAMLError: they are too many, or a node holds itself.
    """
    if isinstance(node, yaml.ScalarNode):
        return 1
    line = node.start_mark.line + 1
    if (known := counts.get(id(node))) is not None:
        if known:
            return known
        raise yaml.YAMLError(f"line {line}: an alias should not stand within what it names")
    counts[id(node)] = 0
    children = node.value
    if isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
    total = 1 + sum(_count_nodes(child, counts) for child in children)
    if total > _MAX_NODES:
        raise yaml.YAMLError(
            f"line {line}: a document should have at most {_MAX_NODES:,} values, aliases replaced "
            "by what they stand for, received more"
        )
    counts[id(node)] = total
    return total


def _repeated_keys(
    loader: yaml.SafeLoader, document: yaml.Node, above: str
) -> Iterator[tuple[str, yaml.Mark, yaml.Mark]]:
    """Yields the path and the two places of every key that stands twice.

    An anchored node is visited once, however many aliases lead to it (or if it holds itself).
    """
    waiting = deque([(document, above)])
    visited: set[int] = set()
    while waiting:
        node, path = waiting.popleft()
        if id(node) in visited or isinstance(node, yaml.ScalarNode):
            continue
        visited.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += [(child, _join(path, index)) for index, child in enumerate(node.value)]
            continue
        marks: dict[Hashable, yaml.Mark] = {}
        for key_node, child in node.value:
            key = _parsed_key(loader, key_node)
            if key in marks:
                yield _join(path, key), marks[key], key_node.start_mark
            marks[key] = key_node.start_mark
            waiting.append((child, _join(path, key)))


def _parsed_key(loader: yaml.SafeLoader, node: yaml.Node) -> Hashable:
    """Returns the value of a key; a key that is no scalar is refused when it is constructed."""
    if not isinstance(node, yaml.ScalarNode):
        return id(node)
    if node.tag == "tag:yaml.org,2002:merge":
        return "<<"
    key: Hashable = loader.construct_object(node)
    return key


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _places(first: yaml.Mark, second: yaml.Mark) -> str:
    if first.line == second.line:
        columns = f"columns {first.column + 1} and {second.column + 1}"
        return f"twice on line {first.line + 1} ({columns})"
    return f"on lines {first.line + 1} and {second.line + 1}"


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key '{repeated}' should stand once in its object, received it twice")
    return mapping
