"""Commands that show and compare the ids of the tables of runs and exported models."""

import json
from pathlib import Path

import click

from mail_torchrec.cli.options import LOCAL_PATH

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_TABLE = click.option("--table", help="List the ids of this table, the most frequent first.")
_LIMIT = click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Maximum number of ids that are listed.",
)


@click.group()
def ids() -> None:
    """Show which ids have rows of their own in the tables of runs and exported models."""


@ids.command()
@click.argument("path", metavar="RUN|MODEL", type=LOCAL_PATH)
@_TABLE
@_LIMIT
@_JSON
def show(path: Path, table: str | None, limit: int, as_json: bool) -> None:
    """Print how full each table is and what its last update did, or the ids of one table.

    \b
    mail-torchrec ids show runs/day9
    mail-torchrec ids show models/day9 --table item --limit 100
    """  # noqa: D301
    from mail_torchrec.known_ids.id_tables import read_id_tables, table_of
    from mail_torchrec.known_ids.ids_report import fullness, ids_text, members, show_text

    tables = read_id_tables(path)
    if table is not None:
        found = members(table_of(tables, table, path), limit)
        click.echo(json.dumps(found) if as_json else ids_text(found).rstrip())
        return
    described = {name: fullness(encoder) for name, encoder in tables.items()}
    click.echo(json.dumps(described) if as_json else show_text(described).rstrip())


@ids.command()
@click.argument("before", metavar="BEFORE", type=LOCAL_PATH)
@click.argument("after", metavar="AFTER", type=LOCAL_PATH)
@_TABLE
@_LIMIT
@_JSON
def diff(before: Path, after: Path, table: str | None, limit: int, as_json: bool) -> None:
    """Print how many ids stayed, came and left between two runs or models, or those of one table.

    \b
    mail-torchrec ids diff runs/day8 runs/day9
    mail-torchrec ids diff models/day8 models/day9 --table item
    """  # noqa: D301
    from mail_torchrec.known_ids.id_tables import read_id_tables, table_of
    from mail_torchrec.known_ids.ids_report import changes, diff_text, difference, ids_text

    old, new = read_id_tables(before), read_id_tables(after)
    if table is not None:
        found = changes(table_of(old, table, before), table_of(new, table, after), limit)
        text = "\n".join(f"{name}:\n\n{ids_text(some)}" for name, some in found.items())
        click.echo(json.dumps(found) if as_json else text.rstrip())
        return
    described = {
        name: difference(old[name], new[name])
        for name in new
        if name in old and old[name].values is not None and new[name].values is not None
    }
    click.echo(json.dumps(described) if as_json else diff_text(described).rstrip())
