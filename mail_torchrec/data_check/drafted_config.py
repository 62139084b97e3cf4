"""The ``mail-torchrec init`` command: Parquet files to YAML with a comment a line."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from mail_torchrec.data_check.column_profile import ColumnProfile
from mail_torchrec.data_check.drafted_columns import DraftedColumn, DraftedSchema, draft_schema
from mail_torchrec.data_check.drafted_times import with_times
from mail_torchrec.data_check.layout import Layout, find_layout
from mail_torchrec.data_check.roles import Roles, find_roles
from mail_torchrec.data_check.sample import Sample, read_sample
from mail_torchrec.utils.uris import without_credentials

_COMMENT_AT = 58
_FORBIDDEN = "./"


def draft_config(path: str, chosen: Mapping[str, str], max_rows: int) -> str:
    """Drafts the configuration of a data set, as YAML with a comment a line.

    Args:
        path: folder, file or URI of Parquet files.
        chosen: columns that the user named, by ``label``, ``user`` and ``item``.
        max_rows: training rows to read.

    Raises:
        ValueError: there are no Parquet files, one cannot be read, or no column looks like the
            label, the user, a history or an attribute.
    """
    layout = find_layout(path)
    sample = read_sample(layout.files, max_rows)
    profiles = {
        name: ColumnProfile(name, sample.table[name], kind, sample.faults.get(name))
        for name, kind in sample.stored.items()
    }
    roles = find_roles(profiles, chosen)
    schema = with_times(draft_schema(profiles, roles), profiles, roles)
    _check_groups(path, schema, roles)
    return config_text(layout, sample, schema)


def _check_groups(path: str, schema: DraftedSchema, roles: Roles) -> None:
    """Checks that the draft has what every configuration needs."""
    where = without_credentials(path)
    if "behaviour" not in schema.groups:
        named = "the target item" if roles.item is None else f"the target item '{roles.item}'"
        raise ValueError(
            f"{where}: no column holds lists of ids of {named}, and a model needs the users' "
            "histories; make them with `mail-torchrec prepare events`, or name the item's column "
            "with --item"
        )
    kinds = [
        column.settings.get("kind")
        for column in schema.columns
        if column.settings is not None and column.settings["group"] == "attribute"
    ]
    if not set(kinds) - {"numeric", "vector"}:
        raise ValueError(
            f"{where}: no column of ids follows from the user '{roles.user}', and a model needs an "
            "attribute; join the users' ages, cities or the like to the rows "
            "(`mail-torchrec prepare events` does), or name the user's column with --user"
        )


def config_text(layout: Layout, sample: Sample, schema: DraftedSchema) -> str:
    """Writes a drafted configuration.

    Args:
        layout: files of training and test.
        sample: rows that the draft was made of.
        schema: drafted columns.
    """
    lines = [
        "# Drafted by `mail-torchrec init`: read every line; what columns mean is guessed from",
        f"# {len(sample.table):,} of {sample.num_rows:,} training rows. Then:",
        "#   mail-torchrec check --config FILE",
        "#   mail-torchrec train --config FILE --run-dir runs/first",
        "name: first",
        *_data(layout),
        *_schema(schema),
        *_model(schema),
    ]
    return "\n".join(lines) + "\n"


def _data(layout: Layout) -> Iterator[str]:
    yield "data:"
    yield f"  root: {flow(without_credentials(layout.root))}"
    yield _line(f"  train: {flow(layout.train)}", layout.reason)
    yield f"  test: {flow(layout.test)}"


def _schema(schema: DraftedSchema) -> Iterator[str]:
    yield "schema:"
    yield _line("  dim: 16", "of every table that names none")
    yield "  columns:"
    for column in schema.columns:
        if column.settings is not None:
            name, settings = _named(column)
            yield _line(f"    {flow(name)}: {flow(settings)}", column.reason)
    left_out = [column for column in schema.columns if column.settings is None]
    if left_out:
        yield "    # Not read:"
        yield from (_line(f"    # {flow(column.name)}", column.reason) for column in left_out)
    if schema.sequences:
        yield "  sequences:"
    for sequence in schema.sequences:
        assert sequence.settings is not None
        yield f"    {flow(sequence.name)}:  {_comment(sequence.reason)}"
        yield from (f"      {flow(key)}: {flow(part)}" for key, part in sequence.settings.items())
    yield from _tables(schema)


def _tables(schema: DraftedSchema) -> Iterator[str]:
    """Writes tables of hashed ids, and of actions, whose vectors multiply those of items."""
    actions = [line.name for line in schema.columns if (line.settings or {}).get("action_of")]
    if not schema.hashed and not actions:
        return
    yield "  tables:"
    for name, rows in schema.hashed.items():
        settings = {"ids": "hash", "rows": rows}
        reason = "too many ids for a vocabulary; 'managed' ones suit training every day"
        yield _line(f"    {flow(name)}: {flow(settings)}", reason)
    for name in actions:
        yield _line(f"    {flow(name)}: {flow({'init_mean': 1.0})}", "it multiplies item vectors")


def _model(schema: DraftedSchema) -> Iterator[str]:
    yield "model:"
    yield _line("  tower: dmr", "reads histories; 'din' and others do as well")
    if schema.hashed:
        yield _line("  tower_options: {negatives: uniform}", "hashed ids have no frequencies")
    yield _line("  zero_shot: {variant: full}", "behaviours of new users from attributes")
    if "conversion" in schema.groups:
        yield _line("  multi_task: {}", "learns the conversion too; null for clicks alone")
    yield _line("train: {epochs: 1, batch_size: 256}", "then try others, on validation rows")


def _named(column: DraftedColumn) -> tuple[str, dict[str, Any]]:
    """Returns a name that a schema takes, and the settings, with the name in the files."""
    assert column.settings is not None
    name = (
        "".join(
            "_" if char in _FORBIDDEN or not char.isprintable() else char for char in column.name
        )
        or "unnamed"
    )
    settings = dict(column.settings)
    if name != column.name:
        settings["column"] = column.name
    return name, settings


def flow(value: object) -> str:
    """Writes a value as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{flow(key)}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(flow, value)) + "]"
    if isinstance(value, str) and not value.isprintable():
        return json.dumps(value)  # on one line
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")


def _line(text: str, reason: str) -> str:
    return f"{text.ljust(_COMMENT_AT)}  {_comment(reason)}"


def _comment(text: str) -> str:
    return "# " + "".join(char if char.isprintable() else "?" for char in text)
