"""Writes random logs in the layout of Alimama's display ads, to measure ``prepare`` with.

    python tools/alimama_log.py --rows 20_000_000 --out FOLDER

The ratios are those of the published files: 634 behaviours and 23 impressions a user, activity
spread over two orders of magnitude, 12,977 categories, 461,529 brands, three weeks of behaviours
and eight days of impressions. The values mean nothing.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pacsv

from mail_torchrec.cli.options import OUTPUT_DIR
from tools.tool_command import ToolCommand

CHUNK_ROWS = 1_000_000
NUM_CATES, NUM_BRANDS = 12_977, 461_529
BEHAVIOURS_PER_USER, IMPRESSIONS_PER_USER, ADS_PER_USER = 634, 23, 0.74
# Midnight of 22 April 2017 in Beijing; impressions begin 14 days later.
FIRST_DAY, DAY = 1_492_790_400, 86_400
BTAGS, BTAG_SHARES = ["pv", "cart", "fav", "buy"], [0.95, 0.025, 0.013, 0.012]
PIDS = ["430548_1007", "430539_1007"]


def write_logs(rows: int, out: Path, seed: int = 0) -> None:
    """Writes the four files.

    Args:
        rows: rows of ``behavior_log.csv``; those of the other files follow from it.
        out: the folder to write.
        seed: of the random values.
    """
    out.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    num_users = max(2, rows // BEHAVIOURS_PER_USER)
    num_ads = max(2, int(rows / BEHAVIOURS_PER_USER * ADS_PER_USER))
    activity = np.exp(random.normal(0, 1.2, num_users)).cumsum()
    cate = random.integers(1, NUM_CATES, num_ads)
    _write(out / "ad_feature.csv", [_ads(random, cate)])
    _write(out / "user_profile.csv", [_profiles(random, num_users)])
    sizes = _chunks(num_users * IMPRESSIONS_PER_USER)
    samples = (_impressions(random, size, num_users, num_ads) for size in sizes)
    _write(out / "raw_sample.csv", samples)
    behaviours = (_behaviours(random, size, activity) for size in _chunks(rows))
    _write(out / "behavior_log.csv", behaviours)


def _chunks(rows: int) -> Iterator[int]:
    for start in range(0, rows, CHUNK_ROWS):
        yield min(CHUNK_ROWS, rows - start)


def _write(path: Path, tables: Iterable[pa.Table]) -> None:
    writer = None
    for table in tables:
        writer = writer or pacsv.CSVWriter(
            path,
            table.schema,
            write_options=pacsv.WriteOptions(quoting_style="none", quoting_header="none"),
        )
        writer.write_table(table)
    if writer is not None:
        writer.close()


def _behaviours(
    random: np.random.Generator, rows: int, activity: npt.NDArray[np.float64]
) -> pa.Table:
    user = np.searchsorted(activity, random.random(rows) * activity[-1]) + 1
    time = FIRST_DAY + random.integers(0, 22 * DAY, rows)
    btag = pa.array(BTAGS).take(pa.array(random.choice(len(BTAGS), rows, p=BTAG_SHARES)))
    cate = random.integers(1, NUM_CATES, rows)
    return pa.table(
        {
            "user": user,
            "time_stamp": time,
            "btag": btag,
            "cate": cate,
            "brand": random.integers(1, NUM_BRANDS, rows),
        }
    )


def _impressions(random: np.random.Generator, rows: int, num_users: int, num_ads: int) -> pa.Table:
    clicked = (random.random(rows) < 0.05).astype(int)
    return pa.table(
        {
            "user": random.integers(1, num_users + 1, rows),
            "time_stamp": FIRST_DAY + 14 * DAY + random.integers(0, 8 * DAY, rows),
            "adgroup_id": random.integers(1, num_ads + 1, rows),
            "pid": pa.array(PIDS).take(pa.array(random.integers(0, 2, rows))),
            "nonclk": 1 - clicked,
            "clk": clicked,
        }
    )


def _ads(random: np.random.Generator, cate: npt.NDArray[np.int64]) -> pa.Table:
    rows = len(cate)
    brand = [
        str(number) if number % 4 else "NULL" for number in random.integers(1, NUM_BRANDS, rows)
    ]
    columns = {
        "adgroup_id": np.arange(1, rows + 1),
        "cate_id": cate,
        "campaign_id": random.integers(1, rows + 1, rows),
    }
    columns |= {"customer": random.integers(1, rows + 1, rows), "brand": pa.array(brand)}
    return pa.table(columns | {"price": np.round(np.exp(random.normal(5, 1.5, rows)), 2)})


def _profiles(random: np.random.Generator, num_users: int) -> pa.Table:
    levels = {
        "cms_segid": 97,
        "cms_group_id": 13,
        "final_gender_code": 2,
        "age_level": 7,
        "pvalue_level": 3,
        "shopping_level": 3,
    }
    levels |= {"occupation": 2, "new_user_class_level ": 4}  # the published header ends in a blank
    columns = {name: random.integers(1, top + 1, num_users) for name, top in levels.items()}
    optional = {"pvalue_level", "new_user_class_level "}
    known = random.random(num_users) < 0.5
    return pa.table(
        {"userid": np.arange(1, num_users + 1)}
        | {
            name: pa.array(values, mask=~known if name in optional else None)
            for name, values in columns.items()
        }
    )


@click.command(cls=ToolCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--rows",
    type=click.IntRange(1),
    default=20_000_000,
    show_default=True,
    help="Rows of behavior_log.csv.",
)
@click.option("--out", type=OUTPUT_DIR, required=True, help="Folder to write.")
def main(rows: int, out: Path) -> None:
    """Write random logs in the layout of Alimama's display ads; their values mean nothing."""
    write_logs(rows, out)


if __name__ == "__main__":
    main()
