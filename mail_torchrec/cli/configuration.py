"""Command that documents the configuration."""

import json

import click


@click.command()
@click.option(
    "--reference", is_flag=True, help="Print every key with its type, default and meaning."
)
@click.option(
    "--section", metavar="PREFIX", help="Only the keys below it: sharding, model.zero_shot, ..."
)
@click.option(
    "--json-schema",
    is_flag=True,
    help="Print a JSON Schema, for an editor's YAML plugin, instead of Markdown.",
)
def config(reference: bool, section: str | None, json_schema: bool) -> None:
    """Print what a configuration file may hold, as the settings classes have it.

    \b
    mail-torchrec config --reference --section sharding
    mail-torchrec config --reference --json-schema > mail-torchrec.schema.json

    With the YAML plugin of an editor, the second lets it complete, explain and check a file that
    starts with the line "# yaml-language-server: $schema=mail-torchrec.schema.json".
    """  # noqa: D301
    if not reference and not json_schema:
        raise click.UsageError("Choose what to print: --reference, or --reference --json-schema.")
    if json_schema and section is not None:
        raise click.UsageError("--json-schema describes the whole file; leave out --section.")
    from mail_torchrec.cli.config_json_schema import config_json_schema
    from mail_torchrec.cli.config_reference import (
        config_sections,
        reference_markdown,
        sections_below,
    )

    schema = config_json_schema()
    if json_schema:
        click.echo(json.dumps(schema, indent=2))
        return
    click.echo(reference_markdown(sections_below(config_sections(schema), section or "")), nl=False)
