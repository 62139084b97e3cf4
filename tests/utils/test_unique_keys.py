"""A key that stands twice in a mapping is an error, wherever YAML or JSON of a user is read."""

import re
from pathlib import Path

import pytest
import yaml

from mail_torchrec.utils.unique_keys import parse_json, parse_yaml

ROOT = Path(__file__).parents[2]
REPEATED = {
    "a section": ("train: {epochs: 1}\nname: x\ntrain: {epochs: 2}\n", "train", "lines 1 and 3"),
    "a key of a section": ("train:\n  epochs: 1\n  epochs: 1\n", "train.epochs", "lines 2 and 3"),
    "a deeper one": ("a:\n  b:\n  - c: 1\n    d: 2\n    c: 3\n", "a.b.0.c", "lines 3 and 5"),
    "a flow mapping": ("a: {b: 1,\n    b: 2}\n", "a.b", "lines 1 and 2"),
    "one line": ("a: {b: 1, b: 2}", "a.b", r"line 1 \(columns 5 and 11\)"),
    "quotes": ("a: 1\n'a': 2\n\"a\": 3\n", "a", "lines 1 and 2"),
    "words of truth": ("yes: 1\ntrue: 2\n", "True", "lines 1 and 2"),
    "numbers": ("16: 1\n0x10: 2\n", "16", "lines 1 and 2"),
    "a number and a fraction": ("1: 1\n1.0: 2\n", "1.0", "lines 1 and 2"),
    "nothing": ("~: 1\nnull: 2\n", "None", "lines 1 and 2"),
    "an anchor": ("x: &x {a: 1, a: 2}\ny: *x\n", "x.a", r"line 1 \(columns 8 and 14\)"),
    "two merges": ("x: &x {}\ny:\n  <<: *x\n  <<: *x\n", "y.<<", "lines 3 and 4"),
    "in what is merged": ("x:\n  <<: {a: 1, a: 2}\n", "x.<<.a", "line 2"),
    "beside a merge": ("x: &x {a: 1}\ny:\n  <<: *x\n  a: 2\n  a: 3\n", "y.a", "lines 4 and 5"),
}


@pytest.mark.parametrize("case", REPEATED)
def test_a_key_that_stands_twice_is_named_with_both_lines(case: str) -> None:
    text, path, lines = REPEATED[case]
    with pytest.raises(
        yaml.YAMLError, match=rf"key '{re.escape(path)}' should stand once.*{lines}"
    ):
        parse_yaml(text)


@pytest.mark.parametrize(
    "text",
    [
        "x: &x {a: 1, b: 2}\ny:\n  <<: *x\n  a: 3\n",
        "x: &x {a: 1}\nz: &z {a: 2}\ny: {<<: [*x, *z], a: 3}\n",
        "x: {a: 1}\ny: {a: 1}\n",
        "1: a\n'1': b\n",
        "yes: a\n'yes': b\n",
        "x: &x [{a: 1}]\ny: [*x, *x]\n",
        "# nothing",
    ],
)
def test_what_is_no_repetition_is_parsed_as_pyyaml_does(text: str) -> None:
    assert parse_yaml(text) == yaml.safe_load(text)


BOMB = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12)
)
HOSTILE = {
    "a mapping that holds itself": ("a: &a\n  b: *a\n", "an alias should not stand within"),
    "a list that holds itself": ("&a [*a]", "an alias should not stand within"),
    "a key that holds itself": ("&a {? *a : 1}", "an alias should not stand within"),
    "aliases of aliases": (BOMB, "a document should have at most 100,000 values"),
    "merges of merges": (MERGES, "a document should have at most 100,000 values"),
    "many values": (f"[{'1,' * 100_001}]", "a document should have at most 100,000 values"),
    "nested lists": ("[" * 5000 + "]" * 5000, "nested too deeply"),
    "nested mappings": ("{a: " * 5000 + "}" * 5000, "nested too deeply"),
    "unclosed lists": ("[" * 5000, "nested too deeply"),
    "nested blocks": ("".join(" " * n + "a:\n" for n in range(3000)), "nested too deeply"),
    "an endless number": ("1" * 5000, "limit"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_document_that_would_grow_or_nest_without_bound_is_an_error(case: str) -> None:
    text, message = HOSTILE[case]
    with pytest.raises(yaml.YAMLError, match=message):
        parse_yaml(text)


def test_json_that_is_nested_too_deeply_is_an_error() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 100_000)


@pytest.mark.parametrize("text", ["a: 2023-02-30", "2023-02-30: a", "? [a]\n: 1", "? {a: 1}\n: 1"])
def test_what_pyyaml_cannot_construct_is_an_error_of_yaml(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        parse_yaml(text)


def test_json_likewise() -> None:
    assert parse_json('{"a": {"b": 1}, "b": [2]}') == {"a": {"b": 1}, "b": [2]}
    with pytest.raises(ValueError, match="key 'b' should stand once in its object, received it tw"):
        parse_json('{"a": {"b": 1, "c": 2, "b": 3}}')


def test_nothing_in_the_package_parses_yaml_by_itself() -> None:
    others = [
        str(path.relative_to(ROOT))
        for folder in ("mail_torchrec", "tools", "components", "launch")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"yaml\.(\w*load\w*|\w*Loader)\b", path.read_text())
    ]
    assert others == ["mail_torchrec/utils/unique_keys.py"]
