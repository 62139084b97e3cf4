"""The paper's figures: as printed, and shown only where the data is the paper's."""

from pathlib import Path

import pytest

from mail_torchrec.prepare.run import prepare
from mail_torchrec.prepare.settings import PrepareSettings
from mail_torchrec.reproduce.methods import TABLE_2, TABLE_3
from mail_torchrec.reproduce.paper import paper_figures, papers_dataset
from mail_torchrec.reproduce.statistics import relative_improvement
from tests.prepare.raw_logs import WRITERS


@pytest.mark.parametrize(("table", "dataset", "method", "base", "part", "figure", "printed"), [
    ("table2", "public", "LLAE", "Emblr", "new", "auc", 0.93), ("table2", "public", "MAIL-BaseDNN", "BaseDNN", "new", "gauc", 0.91),
    ("table2", "public", "MAIL-DMR", "DMR", "new", "auc", 1.34), ("table2", "public", "MetaEmb", "BaseDNN", "old", "gauc", 0.05),
    ("table2", "industrial", "MetaEmb", "BaseDNN", "new", "auc", 0.93), ("table2", "industrial", "MAIL-DMR", "DMR", "new", "gauc", 0.70),
    ("table2", "industrial", "MAIL-DMR", "DMR", "old", "gauc", 0.10), ("table2", "industrial", "LLAE", "Emblr", "old", "auc", 0.11),
    ("table3", "public", "MAIL-None", "MAIL-BaseDNN", "new", "auc", -1.68),
    ("table3", "public", "MAIL-Dual", "MAIL-BaseDNN", "old", "auc", 0.01),
    ("table3", "industrial", "BaseDNN", "MAIL-BaseDNN", "new", "auc", -1.13),
    ("table3", "industrial", "MAIL-None", "MAIL-BaseDNN", "old", "auc", -0.07),
])  # fmt: skip
def test_relative_improvements_are_the_printed_ones(
    table: str, dataset: str, method: str, base: str, part: str, figure: str, printed: float
) -> None:
    figures = paper_figures(table, dataset)
    assert relative_improvement(figures[method][part][figure], figures[base][part][figure]) == pytest.approx(printed, abs=0.016)


@pytest.mark.parametrize("dataset", ["public", "industrial"])
def test_the_papers_methods_are_ours(dataset: str) -> None:
    assert list(paper_figures("table2", dataset)) == TABLE_2[:7]
    assert list(paper_figures("table3", dataset)) == TABLE_3[:5]


def test_prepared_data_says_whose_it_is(tmp_path: Path) -> None:
    assert papers_dataset(str(tmp_path)) is None and papers_dataset("s3://bucket/rows") is None
    for dataset, expected in (("alimama", "public"), ("movielens", None)):
        WRITERS[dataset](tmp_path / "raw" / dataset)
        prepare(dataset, PrepareSettings(threads=1), tmp_path / "raw" / dataset, tmp_path / dataset)
        assert papers_dataset(str(tmp_path / dataset)) == expected
    (tmp_path / "prepared.json").write_text("{}")  # of somebody else
    assert papers_dataset(str(tmp_path)) is None
