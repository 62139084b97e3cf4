"""Checks the commands that pages show, without running them."""

import importlib
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import click
from torchx.specs.builders import materialize_appdef

from components import mail
from mail_torchrec.cli import main
from mail_torchrec.cli.config_json_schema import config_json_schema
from mail_torchrec.cli.config_reference import config_sections
from mail_torchrec.synthetic.settings import DailyWorldSettings, WorldSettings
from tools.update_pages import ROOT

_OPERATORS = {"|", "||", "&", "&&", ";"}
_ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")
_TORCHRUN_OPTIONS = {"--nproc-per-node", "--nnodes", "--max-restarts", "--node-rank",
                     "--master-addr", "--rdzv-endpoint", "--rdzv-backend"}  # fmt: skip


def faults(line: str) -> list[str]:
    """What is wrong with the commands of one line of a shell block.

    Commands of other programs are not read.
    """
    found = []
    for words in _simple_commands(line):
        try:
            _check(words)
        except (click.ClickException, ValueError, SystemExit, AttributeError) as error:
            if isinstance(error, click.BadParameter) and isinstance(
                getattr(error.param, "type", None), click.Path
            ):
                continue  # the example's own file is not there
            if isinstance(error, SystemExit) and not error.code:
                continue  # --help of a component
            text = error.format_message() if isinstance(error, click.ClickException) else error
            found.append(f"{shlex.join(words)}: {text}")
        except click.exceptions.Exit:  # --help
            pass
    return found


def is_known_key(key: str) -> bool:
    """Whether a dotted name is a key or a section of the configuration."""
    return any(re.fullmatch(pattern, key) for pattern in _key_patterns())


@cache
def _key_patterns() -> tuple[str, ...]:
    sections = config_sections(config_json_schema())
    keys = {key.key for section in sections for key in section.keys}
    names = sorted(keys | {f"{key}.NAME" for key in keys if key in _MAPS})
    return tuple(re.escape(key).replace("NAME", r"[^.]+") for key in names)


_MAPS = {"schema.columns", "schema.sequences", "schema.tables", "sharding.tables",
         "sharding.table_kernels", "sharding.lengths"}  # fmt: skip


def _simple_commands(line: str) -> Iterator[list[str]]:
    """Splits a line at the shell's operators; assignments before and redirections are dropped."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word not in _OPERATORS:
            words.append(word)
            continue
        while words and _ASSIGNMENT.fullmatch(words[0]):
            words.pop(0)
        ends = [i for i, other in enumerate(words) if set(other) & set("<>") and len(other) <= 2]
        if words:
            yield words[: ends[0]] if ends else words
        words = []


def _check(words: list[str]) -> None:
    match words:
        case ["mail-torchrec", *arguments] | ["python", "-m", "mail_torchrec", *arguments]:
            _check_click(main, "mail-torchrec", arguments)
        case ["torchrun", *_]:
            end = words.index("-m")  # ValueError: it runs something else
            options = [word for word in words[1:end] if word.startswith("-")]
            if unknown := {option.split("=")[0] for option in options} - _TORCHRUN_OPTIONS:
                raise ValueError(f"options of torchrun unknown to this test: {sorted(unknown)}")
            if words[end + 1] != "mail_torchrec":
                raise ValueError(f"torchrun should run mail_torchrec, received {words[end + 1]}")
            _check_click(main, "mail-torchrec", words[end + 2 :])
        case ["torchx", "run", *arguments]:
            _check_component(arguments)
        case ["python", script, *arguments] if script.endswith(".py"):
            module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
            _check_click(module.main, script, arguments)
        case [script, *_] if "/" in script and not (ROOT / script).exists():
            raise ValueError("there is no such file")


def _check_component(arguments: Sequence[str]) -> None:
    [place] = [i for i, word in enumerate(arguments) if word.startswith("components/mail.py:")]
    component = getattr(mail, arguments[place].partition(":")[2])
    options = list(arguments[place + 1 :])
    materialize_appdef(component, options)
    if "--" in options:
        _check_overrides(options[options.index("--") + 1 :])


def _check_click(command: click.Command, name: str, arguments: Sequence[str]) -> None:
    context = command.make_context(name, list(arguments))
    if isinstance(command, click.Group):
        name, child, rest = command.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        assert child is not None
        context = child.make_context(name, rest, parent=context)
    params = context.params
    if name == "synthesize":
        keys = [override.partition("=")[0] for override in params["overrides"]]
        world = WorldSettings if params["days"] is None else DailyWorldSettings
        if unknown := set(keys) - set(world.model_fields):
            raise ValueError(f"unknown keys {sorted(unknown)}")
    else:
        _check_overrides([*params.get("overrides", ()), *(params.get("vary") or ())])
    for path in params.values():
        if isinstance(path, Path) and path.parts[0] == "launch" and not (ROOT / path).exists():
            raise ValueError(f"there is no {path}")


def _check_overrides(overrides: Sequence[str]) -> None:
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not is_known_key(key):
            raise ValueError(f"'{override}' sets no key of the configuration")


if str(ROOT) not in sys.path:  # tools import each other by `tools.`
    sys.path.insert(0, str(ROOT))
