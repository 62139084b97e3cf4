"""Cost of kinds of columns: each is a configuration, and the planner's bytes are right."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from mail_torchrec.config import Config
from tools.bench_columns import Ratio, main, step_ratios
from tools.column_kinds import KINDS, TOWERS, configuration

KINDS_RUN = ("list, weighted", "vector column", "three parts, sum", "tasks, PLE")


@pytest.mark.parametrize("tower", TOWERS)
def test_every_kind_is_a_valid_configuration(tower: str) -> None:
    trees = [configuration(tower, kind, 32) for kind in KINDS.values()]
    found = {Config.model_validate(tree).model_dump_json() for tree in trees}
    assert len(found) == len(KINDS)


def test_the_planner_says_within_a_tenth_what_each_kind_takes(tmp_path: Path) -> None:
    out = tmp_path / "columns.md"
    small = "--rows 1500 --batch-size 64 --repeats 1 --steps 1 --epochs 1 --tower base_dnn"
    kinds = [word for name in KINDS_RUN for word in ("--kind", name)]
    done = CliRunner().invoke(
        main, [*small.split(), *kinds, "--out", str(out)], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    lines = [line for line in out.read_text().splitlines() if "iB = " in line]
    assert len(lines) == 1 + len(KINDS_RUN)
    for line in lines:
        ratios = [float(cell.rpartition("=")[2]) for cell in line.split("|")[2:-1]]
        assert ratios[:2] == [1, 1] and ratios == pytest.approx([1] * 4, abs=0.1), line


def test_an_interval_of_a_median_holds_it_with_95_percent() -> None:
    values = [float(number) for number in range(1, 16)]
    assert Ratio.of(values) == Ratio(8, 4, 12)  # binomial: P(3 or fewer of 15) is .0176
    assert Ratio.of(values[:4]) == Ratio(2.5, 1, 4)


class _Recorder:
    """Stands for a trainer, and writes down its steps."""

    def __init__(self, name: str, steps: list[str]) -> None:
        self.name, self._steps = name, steps
        self.input: Any = SimpleNamespace(seconds=0.0)

    def step(self) -> int:
        self._steps.append(self.name)
        return 1


def test_each_of_a_pair_begins_every_other_turn_and_both_train_alike() -> None:
    steps: list[str] = []
    pair: Any = _Recorder("a", steps), _Recorder("b", steps)
    step_ratios(*pair, repeats=3, steps=1)
    assert "".join(steps) == "aaabbb" + "aabb" + "bbaa" + "aabb"
