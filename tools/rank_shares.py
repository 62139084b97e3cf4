"""Prints each rank's share of a job: rows, row groups, ids, evaluated rows and tables.

    python tools/rank_shares.py --config runs/kr --ranks 64
    python tools/rank_shares.py --config mine.yaml --rows user=2_000_000_000 --ranks 64,1024

It reads the footers of the files, and asks the functions that a job asks on each rank, so that no
rank need run: the shares of an epoch and of an evaluation, of the counting of ids, and the plan of
the tables. Row groups are in the order of the files; a training shuffles them in each epoch. Rows
that `data.validation` keeps out of the training rows count among them.

Shape: ``R`` ranks.
"""

import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `tools.tool_command`

from mail_torchrec.cli.options import LOCAL_PATH, OUTPUT_FILE, OVERRIDES
from mail_torchrec.data.ids.count_runs import part_bounds
from mail_torchrec.data.reading.partition import EpochPartition, ReaderLayout, RowGroupSlice
from mail_torchrec.data.source import PIECE_ROWS, RowGroupPart, Source
from mail_torchrec.planning.estimator import estimate_scenario
from mail_torchrec.planning.scenarios import Scenario, ScenarioGrid, parse_grid
from mail_torchrec.vocabularies.shares import row_group_shares, row_shares
from tools.tool_command import ToolCommand


class Shares(NamedTuple):
    """What each rank has of something."""

    what: str
    of_ranks_R: NDArray[np.float64]
    is_dealt: bool = True
    """The ranks' shares add up to the whole; False where ranks repeat work of others."""

    def line(self) -> str:
        """Returns the row of the table."""
        least, mean, most = (float(f(self.of_ranks_R)) for f in (np.min, np.mean, np.max))
        total = _format(float(self.of_ranks_R.sum())) if self.is_dealt else ""
        ratio = most / mean if mean else 1.0
        return (
            f"| {self.what} | {total} | {_format(least)} | {_format(mean)} | {_format(most)} | "
            f"{ratio:.2f} |"
        )


def rank_shares(scenario: Scenario) -> list[Shares]:
    """Computes the shares of a job's ranks.

    Args:
        scenario: the job.

    Raises:
        ValueError: files that cannot be read, or settings that no plan meets.
    """
    data, schema, ranks = scenario.config.data, scenario.config.schema_, scenario.world_size
    train, test = (Source(data.path(part), schema) for part in (data.train, data.test))
    batch_size, eval_batch_size = (
        scenario.config.train.batch_size,
        scenario.config.train.eval_batch_size,
    )
    return [
        *_epoch_shares(train, ranks, batch_size, "trained on in an epoch"),
        *_fitting_shares(train, ranks),
        Shares("row groups of test data checked", _counts(map(len, row_group_shares(test, ranks)))),
        *_epoch_shares(test, ranks, eval_batch_size, "evaluated"),
        *_table_shares(scenario),
    ]


def _epoch_shares(source: Source, ranks: int, batch_size: int, what: str) -> Iterator[Shares]:
    """Yields the rows of each rank, and the rows and row groups that it decodes for them."""
    slices = [RowGroupSlice(group, range(group.num_rows)) for group in source.row_groups]
    layout = ReaderLayout(ranks=ranks, workers=1, batch_size=batch_size, shuffle_buffer_size=1)
    partition = EpochPartition(slices, layout)
    rows = [partition.rank_rows(rank) for rank in range(ranks)]
    parts = [
        list(partition.slices_between(own.start, own.stop)) if len(own) else [] for own in rows
    ]
    yield Shares(f"rows {what}", _counts(map(len, rows)))
    # A row group is decoded from its beginning, a piece at a time.
    decoded = (
        sum(_to_piece(inside.stop, part.group.num_rows) for _, part, inside in found)
        for found in parts
    )
    yield Shares("rows decoded for it", _counts(decoded), is_dealt=False)
    yield Shares("row groups opened for it", _counts(map(len, parts)), is_dealt=False)


def _fitting_shares(source: Source, ranks: int) -> Iterator[Shares]:
    """Yields what each rank reads and merges before the training."""
    shares = row_shares(source, ranks)
    kept = (sum(_stop(part) - part.first * PIECE_ROWS for part in share) for share in shares)
    yield Shares("rows counted for vocabularies", _counts(kept))
    decoded = (sum(map(_stop, share)) for share in shares)
    yield Shares("rows decoded for it", _counts(decoded), is_dealt=False)
    merged = (stop - first for first, stop in part_bounds(ranks))
    yield Shares("hash parts of the ids merged", _counts(merged))


def _table_shares(scenario: Scenario) -> Iterator[Shares]:
    """Yields what each rank holds of the tables; copies of them are alike."""
    estimate = estimate_scenario(scenario)
    rows_R, values_R = np.zeros((2, scenario.group.world_size))
    for option, ranks_S in estimate.plan.placements.values():
        np.add.at(rows_R, ranks_S, option.sizes_S2[:, 0])
        np.add.at(values_R, ranks_S, option.sizes_S2.prod(axis=1))
    copies = scenario.world_size // scenario.group.world_size
    yield Shares("rows of table shards", np.tile(rows_R, copies), is_dealt=False)
    yield Shares("values of tables", np.tile(values_R, copies))
    state_R = estimate.table_memory_R["optimizer state"]
    yield Shares("bytes of optimizer state", np.tile(state_R, copies))


def _stop(part: RowGroupPart) -> int:
    num_rows = part.group.num_rows
    return num_rows if part.stop is None else min(part.stop * PIECE_ROWS, num_rows)


def _to_piece(row: int, num_rows: int) -> int:
    """Returns the rows of a row group's pieces up to the one that holds the last of some rows."""
    return min(-(-row // PIECE_ROWS) * PIECE_ROWS, num_rows) if num_rows > PIECE_ROWS else num_rows


def _counts(numbers: Iterable[int]) -> NDArray[np.float64]:
    return np.fromiter(numbers, np.float64)


def _format(number: float) -> str:
    return f"{number:,.1f}" if number % 1 else f"{number:,.0f}"


def report(grid: ScenarioGrid) -> str:
    """Returns a table for each number of ranks."""
    tables = (
        [
            f"## {scenario.name}: {scenario.world_size} ranks",
            "",
            "| share of a rank | all | least | mean | most | most / mean |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
            *(share.line() for share in rank_shares(scenario)),
            "",
        ]
        for scenario in grid.scenarios()
    )
    return "\n".join(chain.from_iterable(tables))


@click.command(cls=ToolCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", type=LOCAL_PATH, required=True, help="YAML file, or a run.")
@click.option("--ranks", default="64", show_default=True, help="Numbers of ranks, such as 8,64.")
@click.option("--hardware", default="h100", show_default=True, help="As of mail-torchrec plan.")
@click.option("--rows", multiple=True, help="TABLE=N, rows of a vocabulary that no run has built.")
@click.option("--out", type=OUTPUT_FILE, help="Markdown file to write.")
@OVERRIDES
def main(
    config: Path,
    ranks: str,
    hardware: str,
    rows: tuple[str, ...],
    out: Path | None,
    overrides: tuple[str, ...],
) -> None:
    """Print each rank's share of a job, which need not run."""
    text = report(
        parse_grid(
            config,
            overrides,
            hardware_name=hardware,
            hardware_overrides=(),
            ranks=ranks,
            batch_sizes=None,
            vary=(),
            rows=rows,
        )
    )
    click.echo(text)
    if out is not None:
        out.write_text(text + "\n")


if __name__ == "__main__":
    main()
