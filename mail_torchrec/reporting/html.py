"""The Markdown that this package writes -> one HTML page that needs nothing else: pictures inside, no requests, everything escaped."""

import base64
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #333; background: #fff; max-width: 76rem; margin: 2rem auto; padding: 0 1rem }
h1, h2 { line-height: 1.2; margin-top: 2.4rem } h1 { margin-top: 0 }
table { border-collapse: collapse; margin: 1rem 0; font-size: 13px; font-variant-numeric: tabular-nums; display: block; overflow-x: auto }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #e4e4e4; text-align: right; white-space: nowrap }
th { border-bottom-color: #999 } th:first-child, td:first-child { text-align: left }
figure { margin: 1.5rem 0 } figcaption { color: #666; font-size: 13px; max-width: 60rem } img { max-width: 100% }
pre { background: #f6f6f6; padding: .8rem 1rem; overflow-x: auto; font-size: 13px }
"""
_HEAD = (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
    "style-src 'unsafe-inline'\">\n"
)


def as_html(markdown: str, folder: Path) -> str:
    """A page of headings, paragraphs, lists, tables, fenced code and pictures; a paragraph in bold is a small heading.

    Args:
        markdown: blocks with an empty line between them.
        folder: where the pictures (PNG) lie.

    Raises:
        OSError: a picture is missing.
    """
    title = escape(
        next((line[2:] for line in markdown.splitlines() if line.startswith("# ")), "report")
    )
    body = "\n".join(_block(block, folder) for block in _blocks(markdown))
    return f"{_HEAD}<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"


def _blocks(markdown: str) -> Iterator[list[str]]:
    """Runs of lines between empty ones; a fence holds its lines together, a heading stands alone."""
    block: list[str] = []
    fenced = False
    for line in [*markdown.splitlines(), ""]:
        fenced ^= line.startswith("```")
        starts_other = (
            bool(block)
            and not fenced
            and not block[0].startswith("```")
            and _kind(line) != _kind(block[0])
        )
        if (not line and not fenced) or starts_other:
            if block:
                yield block
            block = []
        if line or fenced:
            block.append(line)


def _kind(line: str) -> str:
    return next((mark for mark in ("#", "- ", "| ", "```", "![") if line.startswith(mark)), "")


def _block(lines: list[str], folder: Path) -> str:
    first = lines[0]
    if first.startswith("#"):
        level = len(first) - len(first.lstrip("#"))
        return f"<h{level}>{escape(first[level:].strip())}</h{level}>"
    if first.startswith("```"):
        return f"<pre>{escape(chr(10).join(lines[1:-1]))}</pre>"
    if first.startswith("- "):
        return "<ul>\n" + "\n".join(f"<li>{escape(line[2:])}</li>" for line in lines) + "\n</ul>"
    if first.startswith("| "):
        return _table(lines)
    if picture := re.fullmatch(r"!\[(.*)\]\((.*)\)", first):
        return _figure(folder / picture[2], picture[1])
    if bold := re.fullmatch(r"\*\*(.*)\*\*", first):
        return f"<h3>{escape(bold[1])}</h3>"
    return f"<p>{escape(' '.join(lines))}</p>"


def _table(lines: list[str]) -> str:
    """The second line is Markdown's rule."""
    rows = [
        [escape(cell.strip()) for cell in line.strip().strip("|").split("|")]
        for line in (lines[0], *lines[2:])
    ]
    cells = [
        "".join(f"<{tag}>{cell}</{tag}>" for cell in row)
        for tag, row in zip(["th"] + ["td"] * len(rows), rows, strict=False)
    ]
    head, *body = (f"<tr>{row}</tr>" for row in cells)
    return f"<table>\n<thead>{head}</thead>\n<tbody>\n" + "\n".join(body) + "\n</tbody>\n</table>"


def _figure(png: Path, caption: str) -> str:
    image = base64.b64encode(png.read_bytes()).decode()
    text = escape(caption)
    return f'<figure>\n<img alt="{text}" src="data:image/png;base64,{image}">\n<figcaption>{text}</figcaption>\n</figure>'
