"""Every path of every command line is of one type, which refuses URIs before the work begins."""

import importlib
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mail_torchrec.cli import main
from mail_torchrec.cli.options import LocalPath

ROOT = Path(__file__).parents[2]
# All others that name data (--data, --users, --items, LOG) are Parquet, which Arrow reads anywhere.
OPTIONS = {"--config", "--run-dir", "--plan", "--model", "--raw", "--out", "--predictions"}
LOCAL = OPTIONS | {"--compare", "--copy-to", "--space", "folder", "run_dirs"}
LOCAL |= {"--continue", "--init-from", "--delta-of", "--models", "--cache", "delta", "source"}
LOCAL |= {"--calibrate", "--rank-job"}
OTHERS = [("serve", "--model"), ("export", "--calibrate")]
"""Takes the URI of what was published, too; and is a method there, no file."""


def local_paths() -> list[tuple[str, str]]:
    """Each command with one of its local paths: an option, or the place of an argument."""
    return [
        (name, param.opts[0])
        for name, command in main.commands.items()
        for param in command.params
        if isinstance(param.type, LocalPath)
    ]


@pytest.mark.parametrize("uri", ["s3://bucket/a", "file:///a"])
@pytest.mark.parametrize(("name", "path"), local_paths())
def test_a_uri_is_refused_in_one_line_before_anything_is_made(
    name: str, path: str, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [name]
    for param in main.commands[name].params:
        value = uri if path == param.opts[0] else "local"
        if isinstance(param.type, click.Choice):
            value = param.type.choices[0]
        if isinstance(param, click.Argument) and param.name != "overrides":
            words.append(value)
        elif isinstance(param, click.Option) and (param.required or value == uri):
            words += [param.opts[0], value]
    result = CliRunner().invoke(main, words)
    shown = path if path.startswith("--") else ""
    assert result.exit_code == 1 and result.output.count("\n") == 1, result.output
    assert re.match(rf"Error: {shown}.* should be a path on this machine", result.output)
    assert not list(tmp_path.iterdir())


def test_every_option_that_names_a_file_has_the_type_or_takes_uris() -> None:
    for name, command in main.commands.items():
        for param in command.params:
            option = param.opts[0]
            is_local = option in LOCAL and (name, option) not in OTHERS
            assert isinstance(param.type, LocalPath) is is_local, (name, param.opts)


@pytest.mark.parametrize("folder", ["mail_torchrec", "tools"])
def test_no_command_line_has_another_type_of_path(folder: str) -> None:
    others = [
        str(path.relative_to(ROOT))
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"click\.(Path|File)\(", path.read_text())
    ]
    assert others == []


def test_the_components_refuse_what_the_commands_refuse() -> None:
    mail = importlib.import_module("components.mail")
    for call in (
        lambda: mail.train("c.yaml", "s3://bucket/run"),
        lambda: mail.train("s3://bucket/c.yaml", "run"),
        lambda: mail.evaluate("gs://bucket/run", "gs://bucket/data"),
        lambda: mail.plan("c.yaml", "file:///plans"),
        lambda: mail.export("run", "s3a:/bucket/model"),
    ):
        with pytest.raises(ValueError, match=r"--\w+ should be a path .* received a URI"):
            call()
    mail.evaluate("run", "s3://bucket/data")
