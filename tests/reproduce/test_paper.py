"""The paper's metrics: as printed, and shown only where the data is the paper's."""

from pathlib import Path

import pytest

from mail_torchrec.prepare.pipeline import prepare
from mail_torchrec.prepare.settings import PrepareSettings
from mail_torchrec.reproduce.bootstrap import relative_improvement
from mail_torchrec.reproduce.methods.definitions import METHODS, TABLE_2, TABLE_3
from mail_torchrec.reproduce.paper import dataset_of_paper, paper_metrics
from tests.support.raw_logs import WRITERS

PRINTED = {
    ("table2", "public"): {
        "LLAE": (0.93, 0.69, 0.01, 0.00), "MetaEmb": (0.84, 0.42, 0.03, 0.05),
        "MAIL-BaseDNN": (1.22, 0.91, 0.00, 0.02), "MAIL-DMR": (1.34, 1.14, 0.00, 0.06),
    },
    ("table2", "industrial"): {
        "LLAE": (0.46, 0.29, 0.11, 0.05), "MetaEmb": (0.93, 0.37, 0.07, 0.10),
        "MAIL-BaseDNN": (1.15, 0.51, 0.07, 0.01), "MAIL-DMR": (1.05, 0.70, 0.06, 0.10),
    },
    ("table3", "public"): {
        "BaseDNN": (-1.21, 0.00), "MAIL-None": (-1.68, -0.12),
        "MAIL-Single": (-1.51, -0.06), "MAIL-Dual": (-0.62, 0.01),
    },
    ("table3", "industrial"): {
        "BaseDNN": (-1.13, 0.00), "MAIL-None": (-1.37, -0.07),
        "MAIL-Single": (-1.24, -0.05), "MAIL-Dual": (-0.68, 0.00),
    },
}  # fmt: skip
"""RI in percent, in the order of the paper's columns."""


@pytest.mark.parametrize(("table", "dataset"), PRINTED)
def test_relative_improvements_are_the_printed_ones(table: str, dataset: str) -> None:
    metrics = paper_metrics(table, dataset)
    for name, printed in PRINTED[table, dataset].items():
        base = "MAIL-BaseDNN" if table == "table3" else METHODS[name].tower
        pairs = [
            (metrics[name][cohort][metric], metrics[base][cohort][metric])
            for cohort in ("new", "old")
            for metric in metrics[name][cohort]
        ]
        assert [relative_improvement(*pair) for pair in pairs] == pytest.approx(
            printed, abs=0.016
        ), name


@pytest.mark.parametrize("dataset", ["public", "industrial"])
def test_the_papers_methods_are_ours(dataset: str) -> None:
    assert list(paper_metrics("table2", dataset)) == TABLE_2[:7]
    assert list(paper_metrics("table3", dataset)) == TABLE_3[:5]


def test_prepared_data_says_whose_it_is(tmp_path: Path) -> None:
    assert dataset_of_paper(str(tmp_path)) is None and dataset_of_paper("s3://bucket/rows") is None
    for dataset, expected in (("alimama", "public"), ("movielens", None)):
        WRITERS[dataset](tmp_path / "raw" / dataset)
        prepare(dataset, PrepareSettings(threads=1), tmp_path / "raw" / dataset, tmp_path / dataset)
        assert dataset_of_paper(str(tmp_path / dataset)) == expected
    (tmp_path / "prepared.json").write_text("{}")  # of somebody else
    assert dataset_of_paper(str(tmp_path)) is None
