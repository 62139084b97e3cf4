"""A rank that fails, dies or sticks ends the others within seconds, with rank, span and cause."""

import re
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mail_torchrec.distributed.collectives import broadcast_from_rank_0, rank, results_of_ranks
from mail_torchrec.distributed.rank_status import format_ranks
from tests.support.processes import under_torchrun, without_launcher
from tests.support.ranks import run_ranks
from tests.support.small_rows import config_tree, write_rows

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder / "train/a.parquet", 200, seed=1)
    return folder


def train_arguments(root: Path, folder: Path, timeout: float = 60, **model: Any) -> list[str]:
    tree = config_tree(
        root,
        data={"root": str(root), "test": "train"},
        model={"zero_shot": None} | model,
        train={"batch_size": 16, "timeout": timeout},
    )
    (folder / "c.yaml").write_text(yaml.safe_dump(tree))
    return ["train", "--config", str(folder / "c.yaml"), "--run-dir", str(folder / "run")]


def faulty(fault: str, rank: int) -> dict[str, Any]:
    return {
        "tower": "tests.support.faulty_tower:FaultyTower",
        "tower_options": {"fault": fault, "rank": rank, "step": 3},
    }


# A rank fails within the ranking tower; the others wait in some collective of the step.
RANKING = "'training, epoch 1, step 3, ranking'"
STEP = "'training, epoch 1, step 3(, [a-z_]+)*'"
GONE = "killed, out of memory, or the host is gone"


@pytest.mark.parametrize(
    ("ranks", "fault", "rank", "timeout", "told_by", "said"),
    [
        # An unexpected error, on the rank that keeps the store.
        (
            2,
            "raise",
            0,
            600,
            1,
            rf"Error: rank 0 failed in {RANKING}: KeyError: 'a fault of our own'",
        ),
        (
            3,
            "kill",
            1,
            600,
            2,
            rf"Error: rank \d lost another rank in {STEP}: no answer from rank 1: {GONE}; "
            rf"ranks? 0.* in {STEP} at \S+:\d+",  # they wait, or are about to
        ),
        # The stuck rank is ended too, with the same words.
        (
            2,
            "sleep",
            1,
            4,
            2,
            rf"Error: rank 0 waited 4 s \(train.timeout\) for other ranks in {STEP}: .*"
            rf"rank 1 in {RANKING} at \S+ > support/faulty_tower.py:\d+",
        ),
    ],
)
def test_ranks_without_a_launcher_end_within_seconds_and_name_the_rank(
    root: Path,
    tmp_path: Path,
    ranks: int,
    fault: str,
    rank: int,
    timeout: float,
    told_by: int,
    said: str,
) -> None:
    ended = without_launcher(
        ranks, *train_arguments(root, tmp_path, timeout, **faulty(fault, rank)), timeout=100
    )
    assert all(end.code != 0 for end in ended)
    assert sum(bool(re.search(said, end.output)) for end in ended) == told_by, "\n=====\n".join(
        end.output for end in ended
    )


def test_a_bad_value_on_one_rank_is_what_torchruns_report_ends_with(
    root: Path, tmp_path: Path
) -> None:
    write_rows(tmp_path / "rows/train/a.parquet", 200, seed=1)
    table = pq.read_table(tmp_path / "rows/train/a.parquet")
    labels = [*table["clicked"].to_pylist()[:-1], 2]  # the last row group's, which one rank reads
    table = table.set_column(table.schema.get_field_index("clicked"), "clicked", pa.array(labels))
    pq.write_table(table, tmp_path / "rows/train/a.parquet", row_group_size=50)
    ended = under_torchrun(2, *train_arguments(tmp_path / "rows", tmp_path))
    assert ended.code != 0
    report = ended.output[ended.output.rindex("Root Cause") :]
    assert (
        "a.parquet, row group 3: column 'clicked' should be 0 or 1, received 2 in row 49" in report
    )
    assert "gloo" not in ended.output


def test_ranks_end_with_their_launcher(root: Path, tmp_path: Path) -> None:
    ended = under_torchrun(
        2, *train_arguments(root, tmp_path, **faulty("orphan", 0))
    )  # returns when nobody is left
    assert ended.code == -signal.SIGKILL and "Traceback" not in ended.output


def test_torchrun_restarts_a_job_whose_rank_was_killed_and_it_ends_as_if_nothing_had_been(
    root: Path, tmp_path: Path
) -> None:
    def arguments(name: str, step: int) -> list[str]:
        (tmp_path / name).mkdir()
        tower = faulty("kill", 1)
        tower |= {"tower_options": tower["tower_options"] | {"step": step}}
        return [*train_arguments(root, tmp_path / name, **tower), "checkpoint.every=2"]

    restarted = under_torchrun(2, *arguments("killed", 5), options=("--max-restarts", "3"))
    assert restarted.code == 0, restarted.output
    assert re.search(r"going on after step (2|4)\b", restarted.output)
    ended = without_launcher(2, *arguments("calm", 10**6))
    assert all(end.code == 0 and "going on" not in end.output for end in ended)
    calm, killed = (tmp_path / name / "run/metrics.json" for name in ("calm", "killed"))
    assert calm.read_text() == killed.read_text()


class UnpicklableError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def fail_on(failing: int | None) -> None:
    if failing in (None, rank()):
        raise ValueError(f"rank {rank()}")


def errors_of_rank_0() -> list[Any]:
    def fail(error: Exception) -> Any:
        raise error

    seen: list[Any] = [broadcast_from_rank_0(lambda: rank() + 7)]
    assert results_of_ranks(lambda: rank() + 7) == [7, 8]
    for failing, told in ((0, "0"), (1, "1"), (None, "0")):
        with pytest.raises(ValueError, match=rf"^rank {told}$"):
            results_of_ranks(lambda failing=failing: fail_on(failing))  # type: ignore[misc]
    for error in (KeyError("x"), ValueError("bad"), UnpicklableError(1, 2)):
        try:
            broadcast_from_rank_0(lambda error=error: fail(error))  # type: ignore[misc]
        except Exception as raised:
            seen.append((type(raised).__name__, str(raised)))
    return seen


def test_any_error_of_rank_0_or_of_the_first_rank_is_raised_on_every_rank(tmp_path: Path) -> None:
    first, second = run_ranks(2, errors_of_rank_0, tmp_path)
    assert first == [7, ("KeyError", "'x'"), ("ValueError", "bad"), ("UnpicklableError", "1 and 2")]
    assert second == [
        7,
        ("KeyError", "'x'"),
        ("ValueError", "bad"),
        ("RuntimeError", "UnpicklableError: 1 and 2"),
    ]


@pytest.mark.parametrize(
    ("ranks", "text"), [({3}, "rank 3"), ({0, 1, 2, 5}, "ranks 0-2, 5"), ([4, 2], "ranks 2, 4")]
)
def test_ranks_in_words(ranks: Any, text: str) -> None:
    assert format_ranks(ranks) == text
