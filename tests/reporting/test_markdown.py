"""Names keep their characters in Markdown tables and in the HTML made of them."""

from html import escape
from pathlib import Path

import pytest

from mail_torchrec.reporting.html import markdown_to_html
from mail_torchrec.reporting.markdown import escape_markdown, markdown_table, unescape_markdown

NAMES = ["a|b", "|", "<b>", "</td>", "$x$", "a < b", "\\", "a\\", "*", "&amp;", "日本"]


@pytest.mark.parametrize("name", NAMES)
def test_html_shows_a_name_of_a_table_as_it_is(name: str, tmp_path: Path) -> None:
    page = markdown_to_html(markdown_table(["method", "AUC"], [[name, "0.7"]]), tmp_path)
    assert f"<td>{escape(name)}</td><td>0.7</td>" in page


@pytest.mark.parametrize(
    ("name", "written"),
    [("a|b", r"a\|b"), ("<b>", r"\<b>"), ("p < 0.05", "p < 0.05"), ("$x$", r"\$x\$")],
)
def test_markup_is_escaped_in_markdown(name: str, written: str) -> None:
    assert escape_markdown(name) == written
    assert unescape_markdown(written) == name
    assert written in markdown_table(["method"], [[name]])
