"""Generated tables in pages are up to date; each configuration key stands in exactly one page."""

from collections import Counter

import pytest

from mail_torchrec.cli.config_json_schema import config_json_schema
from mail_torchrec.cli.config_reference import ConfigSection, config_sections
from tests.support.pages import pages
from tools.update_pages import ROOT, block_sections, filled_page, sections_of_block


@pytest.fixture(scope="module")
def sections() -> list[ConfigSection]:
    return config_sections(config_json_schema())


@pytest.fixture(scope="module")
def blocks() -> list[str]:
    return block_sections([page.text for page in pages()])


def test_tables_in_pages_are_up_to_date(sections: list[ConfigSection], blocks: list[str]) -> None:
    stale = [page.name for page in pages() if filled_page(page.text, sections, blocks) != page.text]
    assert stale == [], "run: python tools/update_pages.py"


def test_every_key_stands_in_exactly_one_page(
    sections: list[ConfigSection], blocks: list[str]
) -> None:
    found = Counter(
        (section.condition, key.key)
        for block in blocks
        for section in sections_of_block(sections, block, blocks)
        for key in section.keys
    )
    wanted = {(section.condition, key.key) for section in sections for key in section.keys}
    assert sorted(wanted - found.keys()) == [], "keys without a page"
    assert [key for key, times in found.items() if times > 1] == [], "keys with several pages"


def test_a_block_is_filled_and_leaves_out_what_another_block_has(
    sections: list[ConfigSection],
) -> None:
    page = "a\n<!-- config: train -->\nstale line\n<!-- /config -->\nb\n"
    whole = filled_page(page, sections, ["train"])
    assert whole.startswith("a\n<!-- config: train -->\n`train`: ") and whole.endswith("-->\nb\n")
    assert (
        "stale line" not in whole
        and "| `train.epochs` |" in whole
        and "`train.tables.eps`" in whole
    )
    part = filled_page(page, sections, ["train", "train.tables"])
    assert "| `train.epochs` |" in part and "train.tables.eps" not in part
    assert "| `train.tables` |" in part  # the section's own key stays
    assert filled_page(whole, sections, ["train"]) == whole


def test_a_block_of_an_unknown_section_is_an_error(sections: list[ConfigSection]) -> None:
    with pytest.raises(ValueError, match="unknown section 'trian'; known are root, data"):
        filled_page("<!-- config: trian -->\n<!-- /config -->", sections, ["trian"])


def test_a_block_of_modules_has_each_with_the_first_line_of_its_docstring() -> None:
    page = filled_page("<!-- modules: data/ids -->\n<!-- /modules -->\n", [], [])
    rows = [line for line in page.splitlines() if line.startswith("| [")]
    paths = sorted((ROOT / "mail_torchrec/data/ids").glob("[a-z]*.py"))
    assert [row.split("](")[1].split(")")[0] for row in rows] == [
        f"data/ids/{path.name}" for path in paths
    ]
    for path, row in zip(paths, rows, strict=True):
        first = path.read_text().split('"""')[1].splitlines()[0].replace("``", "`")
        assert row == f"| [{path.name}](data/ids/{path.name}) | {first} |"
