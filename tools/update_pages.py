"""Fills the generated tables in the Markdown pages of this repository.

A page asks for a table by a pair of comments; what stands between them is replaced.

- ``<!-- config: SECTION -->`` and ``<!-- /config -->``: the configuration keys of a section, with
  the sections inside it except those that another block asks for.
- ``<!-- modules: FOLDER -->`` and ``<!-- /modules -->``: the modules of a folder of the package
  with the first sentence of their docstrings.

    python tools/update_pages.py
"""

import ast
import re
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import click

from mail_torchrec.cli.config_json_schema import config_json_schema
from mail_torchrec.cli.config_reference import (
    ConfigSection,
    config_sections,
    prose,
    section_table,
    section_title,
    sections_below,
)

ROOT = Path(__file__).parent.parent
_FOLDERS = ("mail_torchrec", "tests", "tools", "launch", "components")
_PACKAGE = ROOT / "mail_torchrec"
_CONFIG = re.compile(r"(<!-- config: (\S+) -->\n)(.*?)(<!-- /config -->)", re.DOTALL)
_MODULES = re.compile(r"(<!-- modules: (\S+) -->\n)(.*?)(<!-- /modules -->)", re.DOTALL)


def page_paths() -> list[Path]:
    """Lists the Markdown pages of the repository."""
    return [
        ROOT / "README.md",
        *sorted(p for name in _FOLDERS for p in (ROOT / name).rglob("*.md")),
    ]


def block_sections(pages: Sequence[str]) -> list[str]:
    """Lists the sections that blocks ask for, in the order of the pages."""
    return [block[1] for page in pages for block in _CONFIG.findall(page)]


def sections_of_block(
    sections: Sequence[ConfigSection], name: str, blocks: Sequence[str]
) -> list[ConfigSection]:
    """Selects what stands in one block.

    Args:
        sections: of the whole configuration.
        name: of the section that the block asks for.
        blocks: the sections of all blocks.
    """
    return sections_below(
        sections, name, [other for other in blocks if other.startswith(f"{name}.")]
    )


def module_table(folder: Path) -> str:
    """Writes the modules of one folder, with links from the page of the package."""
    lines = ["| module | what it is |", "| --- | --- |"]
    for path in sorted(folder.glob("[!_]*.py")):
        first = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]
        link = path.relative_to(_PACKAGE)
        lines.append(f"| [{path.name}]({link}) | {prose(first).replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def filled_page(page: str, sections: Sequence[ConfigSection], blocks: Sequence[str]) -> str:
    """Replaces the content of every block of a page by what the sources say now."""

    def keys(match: re.Match[str]) -> str:
        found = sections_of_block(sections, match[2], blocks)
        titles = [f"{section_title(section)}: {section.meaning}\n\n" for section in found]
        tables = [f"{section_table(section)}\n" for section in found]
        if len(found) == 1:
            return f"{match[1]}{tables[0]}{match[4]}"
        return match[1] + "\n".join(map("".join, zip(titles, tables, strict=True))) + match[4]

    def modules(match: re.Match[str]) -> str:
        return f"{match[1]}{module_table(_PACKAGE / match[2])}\n{match[4]}"

    return _MODULES.sub(modules, _CONFIG.sub(keys, page))


@click.command()
def main() -> None:
    """Fill the generated tables of all pages, and name the pages that changed."""
    sections = config_sections(config_json_schema())
    pages = {path: path.read_text() for path in page_paths()}
    blocks = block_sections(list(pages.values()))
    for path, page in pages.items():
        if (filled := filled_page(page, sections, blocks)) != page:
            path.write_text(filled)
            click.echo(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
