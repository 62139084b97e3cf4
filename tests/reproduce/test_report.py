"""The report: one HTML file that makes no requests, and shows what the Markdown has."""

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imsave

from mail_torchrec.reporting.html import markdown_to_html
from mail_torchrec.reproduce.sections import ReportSection, write_report

VOID = {"meta", "img", "br"}
NASTY = "<script src='https://evil.example/x.js'>& \"MAIL\""


class Page(HTMLParser):
    """Checks that tags are closed in order; collects texts by tag, and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, text: str) -> None:
        if text.strip():
            self.texts.setdefault(self.open[-1], []).append(text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    imsave(tmp_path / "table2.png", np.zeros((2, 3, 3)))
    table = f"| method |  AUC |\n| ------ | ---: |\n| {NASTY} | .71 |\n"
    text = f"## Table 2\n\nTwo methods,\nside by side.\n\n{table}- {NASTY} wins\n- so it is\n"
    ReportSection(
        "table2", "Table 2", text, ["MAIL wins.", NASTY], {"table2.png": NASTY}, {"seeds": 5}
    ).save(tmp_path, f"mail-torchrec reproduce {NASTY}", "name: a\n\n# a comment, no heading\n")
    ReportSection("warmup", "Warm-up", "## Warm-up\n\nNone.\n", ["No gain."]).save(
        tmp_path, "mail-torchrec reproduce all", "name: a\n"
    )
    return tmp_path


def test_the_page_is_well_formed_and_needs_nothing_else(folder: Path) -> None:
    html, _, _ = write_report(folder, NASTY)
    page = Page(html.read_text())
    sources = [
        value for _, name, value in page.attributes if name in ("src", "href", "data", "action")
    ]
    assert len(sources) == 1 and sources[0].startswith("data:image/png;base64,iVBORw0KGgo")
    tags = {tag for tag, _, _ in page.attributes} | page.texts.keys()
    assert (
        not tags & {"script", "link", "iframe", "object"}
        and "@import" not in html.read_text()
        and "url(" not in html.read_text()
    )
    assert any("default-src 'none'" in value for _, _, value in page.attributes)


def test_the_page_has_all_that_the_markdown_has_names_escaped(folder: Path) -> None:
    html, markdown, _ = write_report(folder, NASTY)
    page = Page(html.read_text())
    assert page.texts["h1"] == [f"{NASTY}: the paper's tables and figures"] and page.texts[
        "h3"
    ] == ["Table 2", "Warm-up"]
    assert page.texts["h2"] == ["Table 2", "Warm-up", "Commands", "Configuration", "Configuration"]
    assert page.texts["li"] == ["MAIL wins.", NASTY, "No gain.", f"{NASTY} wins", "so it is"]
    assert (page.texts["th"], page.texts["td"]) == (["method", "AUC"], [NASTY, ".71"])
    assert page.texts["figcaption"] == [NASTY] and "Two methods, side by side." in page.texts["p"]
    assert page.texts["pre"][0] == f"mail-torchrec reproduce {NASTY}\nmail-torchrec reproduce all"
    assert page.texts["pre"][1:] == ["name: a\n\n# a comment, no heading", "name: a"]
    assert (
        markdown.read_text().index("MAIL wins.")
        < markdown.read_text().index("## Table 2")
        < markdown.read_text().index("## Commands")
    )


def test_a_missing_picture_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        markdown_to_html("![a picture](gone.png)", tmp_path)
