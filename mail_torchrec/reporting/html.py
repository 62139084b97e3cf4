"""Renders the Markdown that this package writes as one self-contained HTML file.

Plots are embedded, everything is escaped, and a content security policy forbids all requests.
"""

import base64
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path

from mail_torchrec.reporting.markdown import unescape_markdown

_STYLE = """
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; color: #333; background: #fff; max-width: 76rem;
  margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere }
h1, h2 { line-height: 1.2; margin-top: 2.4rem } h1 { margin-top: 0 }
table { border-collapse: collapse; margin: 1rem 0; font-size: 13px;
  font-variant-numeric: tabular-nums; display: block; max-width: 100%; overflow-x: auto;
  overflow-wrap: normal }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #e4e4e4; text-align: right;
  white-space: nowrap }
th { border-bottom-color: #999; white-space: normal; vertical-align: bottom }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 12rem;
  overflow-wrap: anywhere }
figure { margin: 1.5rem 0 } img { max-width: 100%; height: auto }
figcaption { color: #666; font-size: 13px; max-width: 60rem }
pre { background: #f6f6f6; padding: .8rem 1rem; overflow-x: auto; font-size: 13px }
"""
_HEAD = (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
    "style-src 'unsafe-inline'\">\n"
)


def markdown_to_html(markdown: str, folder: Path) -> str:
    """Renders headings, paragraphs, lists, tables, fenced code and images.

    A paragraph in bold becomes a small heading.

    Args:
        markdown: blocks with an empty line between them.
        folder: where the images (PNG) lie.

    Raises:
        OSError: an image is missing.
    """
    headings = (line[2:] for line in markdown.splitlines() if line.startswith("# "))
    title = escape(next(headings, "report"))
    body = "\n".join(_render_block(block, folder) for block in _blocks(markdown))
    head = f"{_HEAD}<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n"
    return f"{head}<body>\n{body}\n</body>\n</html>\n"


def _blocks(markdown: str) -> Iterator[list[str]]:
    """Splits into runs of lines between empty ones; fenced lines stay together."""
    block: list[str] = []
    fenced = False
    for line in [*markdown.splitlines(), ""]:
        fenced ^= line.startswith("```")
        in_text = bool(block) and not fenced and not block[0].startswith("```")
        starts_other = in_text and _block_mark(line) != _block_mark(block[0])
        if (not line and not fenced) or starts_other:
            if block:
                yield block
            block = []
        if line or fenced:
            block.append(line)


def _block_mark(line: str) -> str:
    return next((mark for mark in ("#", "- ", "| ", "```", "![") if line.startswith(mark)), "")


def _render_block(lines: list[str], folder: Path) -> str:
    first = lines[0]
    match _block_mark(first):
        case "#":
            level = len(first) - len(first.lstrip("#"))
            return f"<h{level}>{escape(first[level:].strip())}</h{level}>"
        case "```":
            return f"<pre>{escape(chr(10).join(lines[1:-1]))}</pre>"
        case "- ":
            items = "\n".join(f"<li>{escape(line[2:])}</li>" for line in lines)
            return f"<ul>\n{items}\n</ul>"
        case "| ":
            return _render_table(lines)
    return _render_paragraph(lines, folder)


def _render_paragraph(lines: list[str], folder: Path) -> str:
    if image := re.fullmatch(r"!\[(.*)\]\((.*)\)", lines[0]):
        return _render_image(folder / image[2], image[1])
    if bold := re.fullmatch(r"\*\*(.*)\*\*", lines[0]):
        return f"<h3>{escape(bold[1])}</h3>"
    return f"<p>{escape(' '.join(lines))}</p>"


def _render_table(lines: list[str]) -> str:
    """Renders a table; the second line is Markdown's rule."""
    head, *body = (
        _render_row(line, "th" if number == 0 else "td")
        for number, line in enumerate((lines[0], *lines[2:]))
    )
    return f"<table>\n<thead>{head}</thead>\n<tbody>\n" + "\n".join(body) + "\n</tbody>\n</table>"


def _render_row(line: str, tag: str) -> str:
    cells = re.split(r"(?<!\\)\|", line.strip().removeprefix("|").removesuffix("|"))
    texts = (escape(unescape_markdown(cell.strip())) for cell in cells)
    return "<tr>" + "".join(f"<{tag}>{text}</{tag}>" for text in texts) + "</tr>"


def _render_image(png: Path, caption: str) -> str:
    image = base64.b64encode(png.read_bytes()).decode()
    text = escape(caption)
    return (
        f'<figure>\n<img alt="{text}" src="data:image/png;base64,{image}">\n'
        f"<figcaption>{text}</figcaption>\n</figure>"
    )
