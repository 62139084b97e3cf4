"""Saves the sections of a reproduction, and writes one report of all that exist."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mail_torchrec.reporting.html import markdown_to_html
from mail_torchrec.utils.run_files import write_file, write_report_file

SECTIONS = ("table2", "table3", "figures", "warmup")
"""Those that ``all`` makes, in the order of the report."""
FURTHER_SECTIONS = ("curve", "curve-rows", "items", "coldrec")
"""Those of other runs, which follow in the report."""


@dataclass(frozen=True)
class ReportSection:
    """One section of the report."""

    name: str
    title: str
    text: str
    """Markdown, with its heading."""
    verdicts: list[str]
    """Its findings, in sentences."""
    plots: dict[str, str] = field(default_factory=dict)
    """Caption of each file beside the report."""
    content: dict[str, Any] = field(default_factory=dict)
    """Its numbers, for JSON."""

    def save(self, out: Path, command: str, configuration: str) -> None:
        """Writes ``NAME.md`` and ``NAME.json``.

        Args:
            out: a folder.
            command: the command that made the section.
            configuration: the user's, as YAML.
        """
        head = {
            "section": self.name,
            "title": self.title,
            "verdicts": self.verdicts,
            "plots": self.plots,
        }
        record = head | self.content | {"command": command, "configuration": configuration}
        text = json.dumps(record, indent=2, allow_nan=False) + "\n"
        write_file(out / f"{self.name}.json", text)
        write_file(out / f"{self.name}.md", self.text)


def write_report(out: Path, name: str) -> list[Path]:
    """Writes ``report.html``, ``report.md`` and ``report.json`` of the sections saved in ``out``.

    Args:
        out: where sections were saved.
        name: of the configuration, for the title.

    Returns:
        The paths of the three files.
    """
    files = {section: out / f"{section}.json" for section in (*SECTIONS, *FURTHER_SECTIONS)}
    found = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    lines = [
        f"# {name}: the paper's tables and figures",
        "",
        "MAIL, Feng et al., CIKM 2021, on this data. In short:",
        "",
        *_verdicts(found),
        *_sections(found, out),
        *_commands(found),
        *_configurations(found),
    ]
    text = "\n".join(lines)
    paths = [out / f"report.{kind}" for kind in ("html", "md", "json")]
    write_report_file(paths[0], markdown_to_html(text, out))
    write_report_file(paths[1], text)
    record = {"name": name, "sections": found}
    write_report_file(paths[2], json.dumps(record, indent=2, allow_nan=False) + "\n")
    return paths


def _verdicts(found: Mapping[str, Any]) -> list[str]:
    lines = []
    for content in found.values():
        lines += [f"**{content['title']}**", ""]
        lines += [*(f"- {verdict}" for verdict in content["verdicts"]), ""]
    return lines


def _sections(found: Mapping[str, Any], out: Path) -> list[str]:
    lines = []
    for section, content in found.items():
        lines.append((out / f"{section}.md").read_text())
        for file, caption in content["plots"].items():
            lines += [f"![{caption}]({file})", ""]
    return lines


def _commands(found: Mapping[str, Any]) -> list[str]:
    commands = dict.fromkeys(content["command"] for content in found.values())
    return ["## Commands", "", "```", *commands, "```", ""]


def _configurations(found: Mapping[str, Any]) -> list[str]:
    lines = []
    for configuration in dict.fromkeys(content["configuration"] for content in found.values()):
        lines += ["## Configuration", "", "Before what each method changes.", ""]
        lines += ["```yaml", configuration.rstrip(), "```", ""]
    return lines
