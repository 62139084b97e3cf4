"""Options that several commands share, and the type of every local path."""

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import click

from mail_torchrec.utils.local_path import check_local, check_output_dir, check_output_file


class LocalPath(click.Path):
    """Path on this machine, checked before the command begins; a URI is refused.

    Args:
        check: raises ValueError for a path, given the name of its option.
    """

    def __init__(self, check: Callable[[Path, str], None] = check_local) -> None:
        super().__init__(path_type=Path)
        self._check = check

    def convert(
        self,
        value: str | PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:
        """Returns the path of an argument."""
        name = "the path"
        if param is not None:
            name = param.opts[0] if isinstance(param, click.Option) else param.human_readable_name
        try:
            check_local(str(value), name)  # before Path() takes the second slash away
            self._check(Path(value), name)
        except ValueError as error:
            raise click.ClickException(str(error)) from error
        return super().convert(value, param, ctx)


LOCAL_PATH = LocalPath()
OUTPUT_DIR = LocalPath(check_output_dir)
OUTPUT_FILE = LocalPath(check_output_file)

OVERRIDES = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")


def _allow_tower(ctx: click.Context, param: click.Parameter, names: tuple[str, ...]) -> None:
    if names:
        from mail_torchrec.towers.registry import allow_tower

        for name in names:
            allow_tower(name)


ALLOW_TOWER = click.option(
    "--allow-tower",
    multiple=True,
    metavar="MODULE:CLASS",
    callback=_allow_tower,
    expose_value=False,
    help="Import this tower where the run names it; its code runs. The project's need no word.",
)


def parse_pair(option: str, text: str) -> tuple[str, str]:
    """Splits ``NAME=VALUE`` of an option that may be given several times."""
    name, equals, value = text.partition("=")
    if not equals:
        raise click.UsageError(f"{option} should read NAME=VALUE, received '{text}'")
    return name, value


CONFIG = click.option(
    "--config",
    "config_path",
    type=LOCAL_PATH,
    required=True,
    help="YAML file; launch/configs/ holds examples.",
)
