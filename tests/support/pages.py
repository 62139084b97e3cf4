"""The Markdown pages of the repository: their links, anchors, code blocks and shell commands."""

import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tools.update_pages import ROOT, page_paths

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(((?!https?://|mailto:)[^)\s]+)\)")


@dataclass(frozen=True)
class Page:
    """One Markdown page."""

    path: Path
    text: str

    @property
    def name(self) -> str:
        """Its path below the root of the repository."""
        return str(self.path.relative_to(ROOT))

    @property
    def prose(self) -> str:
        """The text without its fenced code blocks."""
        return _FENCE.sub("", self.text)

    def blocks(self, language: str) -> list[str]:
        """The contents of its fenced code blocks of one language."""
        return [body for found, body in _FENCE.findall(self.text) if found == language]

    @property
    def links(self) -> list[str]:
        """The targets of its relative links and pictures."""
        return _LINK.findall(self.prose)

    @property
    def anchors(self) -> set[str]:
        """The anchors that GitHub gives its headings."""
        headings = re.findall(r"^#+ (.*?)#*$", self.prose, re.MULTILINE)
        plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
        words = [re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-") for text in plain]
        return {f"{word}-{n}" if n else word for i, word in enumerate(words)
                for n in [words[:i].count(word)]}  # fmt: skip

    @property
    def code_spans(self) -> list[str]:
        """The inline code of its prose."""
        return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", self.prose)]

    @property
    def shell_lines(self) -> list[str]:
        """The lines of its shell blocks, continued ones joined."""
        return [
            line
            for block in self.blocks("bash")
            for line in block.replace("\\\n", " ").splitlines()
            if line.strip()
        ]


@cache
def pages() -> tuple[Page, ...]:
    """All pages of the repository."""
    return tuple(Page(path, path.read_text()) for path in page_paths())


def page(name: str) -> Page:
    """The page at a path below the root of the repository."""
    [found] = [page for page in pages() if page.name == name]
    return found


def commands(start: str, name: str = "launch/README.md") -> list[list[str]]:
    """The words of each command in a page's shell blocks that starts as given."""
    lines = [line for line in page(name).shell_lines if line.startswith(start)]
    assert lines, f"{name} shows no command that starts with '{start}'"
    return [shlex.split(line, comments=True) for line in lines]
