"""What each part of a reproduction leaves behind, and the one page that is made of all parts that there are."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mail_torchrec.reporting.html import as_html

SECTIONS = ("table2", "table3", "figures", "warmup")
"""In the order of the report."""


@dataclass(frozen=True)
class Section:
    """One part of the report."""

    name: str
    title: str
    text: str
    """Markdown, with its heading."""
    verdicts: list[str]
    """What it says, in sentences."""
    pictures: dict[str, str] = field(default_factory=dict)
    """File beside the report -> caption."""
    content: dict[str, Any] = field(default_factory=dict)
    """Its numbers, for JSON."""

    def save(self, out: Path, command: str, configuration: str) -> None:
        """Writes ``NAME.md`` and ``NAME.json`` into ``out``.

        Args:
            out: a folder.
            command: that made it.
            configuration: of the user, as YAML.
        """
        head = {
            "section": self.name,
            "title": self.title,
            "verdicts": self.verdicts,
            "pictures": self.pictures,
        }
        tail = {"command": command, "configuration": configuration}
        (out / f"{self.name}.json").write_text(
            json.dumps(head | self.content | tail, indent=2, allow_nan=False) + "\n"
        )
        (out / f"{self.name}.md").write_text(self.text)


def write_report(out: Path, name: str) -> list[Path]:
    """Writes ``report.html``, ``report.md`` and ``report.json`` of the sections that lie in ``out``, and returns their paths.

    Args:
        out: where sections were saved.
        name: of the configuration, for the title.
    """
    found = {
        section: json.loads((out / f"{section}.json").read_text())
        for section in SECTIONS
        if (out / f"{section}.json").exists()
    }
    lines = [
        f"# {name}: the paper's tables and figures",
        "",
        "MAIL, Feng et al., CIKM 2021, on this data. In short:",
        "",
    ]
    for content in found.values():
        lines += [
            f"**{content['title']}**",
            "",
            *(f"- {verdict}" for verdict in content["verdicts"]),
            "",
        ]
    for section, content in found.items():
        lines += [(out / f"{section}.md").read_text()]
        for file, caption in content["pictures"].items():
            lines += [f"![{caption}]({file})", ""]
    lines += [
        "## Commands",
        "",
        "```",
        *dict.fromkeys(content["command"] for content in found.values()),
        "```",
        "",
    ]
    for configuration in dict.fromkeys(content["configuration"] for content in found.values()):
        lines += [
            "## Configuration",
            "",
            "Before what each method changes.",
            "",
            "```yaml",
            configuration.rstrip(),
            "```",
            "",
        ]
    text = "\n".join(lines)
    paths = [out / f"report.{kind}" for kind in ("html", "md", "json")]
    paths[0].write_text(as_html(text, out), encoding="utf-8")
    paths[1].write_text(text, encoding="utf-8")
    paths[2].write_text(
        json.dumps({"name": name, "sections": found}, indent=2, allow_nan=False) + "\n"
    )
    return paths
