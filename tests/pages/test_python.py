"""The Python on the pages can be copied: it compiles, defines or imports all names that it uses."""

import ast
import importlib
import re
import subprocess
import sys
from textwrap import dedent

import pytest

from tests.support.pages import pages

_BLOCK = re.compile(r"^ *```python\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def blocks() -> dict[str, str]:
    """The Python blocks of all pages by page and number, those within list items too."""
    return {
        f"{page.name}:{number}": dedent(block)
        for page in pages()
        for number, block in enumerate(_BLOCK.findall(page.text))
    }


@pytest.mark.parametrize("place", blocks())
def test_a_block_uses_no_name_that_it_does_not_define(place: str) -> None:
    words = [
        "ruff",
        "check",
        "--isolated",
        "--select",
        "E9,F821,F811",
        "--output-format",
        "concise",
    ]
    done = subprocess.run(
        [sys.executable, "-m", *words, "-"],
        input=blocks()[place],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("place", blocks())
def test_what_a_block_imports_of_this_project_is_there(place: str) -> None:
    for node in ast.walk(ast.parse(blocks()[place])):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mail_torchrec"):
            module = importlib.import_module(node.module or "")
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def test_blocks_are_found() -> None:
    assert any("Scorer(" in block for block in blocks().values())
