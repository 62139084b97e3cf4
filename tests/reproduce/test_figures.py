"""Figures 4 to 6: the sets of vectors compared, and that the model makes them."""

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from mail_torchrec.checkpoint.data_record import SourceRecord
from mail_torchrec.cli import main
from mail_torchrec.config import Config
from mail_torchrec.data.cold_start import ColdStartSettings
from mail_torchrec.reproduce import warmup
from mail_torchrec.reproduce.figures import make_figures, vector_pairs
from mail_torchrec.reproduce.jobs import TrainingJob
from mail_torchrec.reproduce.methods.selection import section_methods
from mail_torchrec.reproduce.user_vectors import UserVectors, collect_user_vectors
from mail_torchrec.train.data_splits import open_sources
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from tests.support.small_rows import config_tree, write_rows


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainingJob:
    """A trained run of small rows; its tables' optimizer is one that whole tables do not have."""
    folder = tmp_path_factory.mktemp("figures")
    write_rows(folder / "rows/train/a.parquet", 120, seed=1)
    write_rows(folder / "rows/test/b.parquet", 500, seed=2)
    tree = config_tree(
        folder / "rows", data={"root": str(folder / "rows"), "cold_start": {"hide_share": 0.4}}
    )
    tree["train"] |= {"tables": {"name": "rowwise_adagrad"}}
    (folder / "small.yaml").write_text(yaml.safe_dump(tree))
    config = Config.model_validate(tree)
    train(config, RunDir(folder / "run"))
    sources = open_sources(config)
    records = SourceRecord.of(sources.train), SourceRecord.of(sources.test), None
    return TrainingJob("MAIL-DMR", 1, folder / "run", config, records)


def some(num_users: int, *, with_history: bool = True) -> UserVectors:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(3, num_users, 4))
    is_new = np.arange(num_users) % 2 == 0
    return UserVectors(np.arange(num_users), is_new, ~is_new | with_history, *vectors)


def test_real_and_virtual_behaviours_are_read_from_the_run(run: TrainingJob) -> None:
    found = collect_user_vectors(run.run_dir, num_users=1000)
    rows = pq.read_table(Path(run.config.data.root) / "test").to_pylist()
    has_history = {row["user"]: bool(row["history"]) for row in rows}
    assert len(found.users_U) == len(has_history) and found.has_real_U.sum() == sum(
        has_history.values()
    )
    assert (found.real_UD[~found.has_real_U] == 0).all() and (
        found.real_UD[found.has_real_U] != 0
    ).any(axis=1).all()
    assert found.is_new_U.sum() > (~found.has_real_U).sum()  # hidden users are new and yet known
    assert (found.virtual_UD != 0).any(axis=1).all() and found.virtual_UD.shape[
        1
    ] == 8 == found.attributes_UE.shape[1]
    assert len(np.unique(found.virtual_UD.round(6), axis=0)) > 10  # of each user's own attributes


def test_as_many_users_of_each_kind_as_were_asked_for_the_same_each_time(run: TrainingJob) -> None:
    found, again, more = (collect_user_vectors(run.run_dir, number) for number in (15, 15, 25))
    assert found.is_new_U.sum() == 15 == (~found.is_new_U).sum() and np.array_equal(
        found.virtual_UD, again.virtual_UD
    )
    assert set(found.users_U) <= set(more.users_U)


def test_real_meets_virtual_of_the_same_users_and_new_meets_old() -> None:
    found = some(100)
    pairs = vector_pairs(found)
    assert [(pair.figure, pair.title) for pair in pairs] == [
        ("5", "behaviours of old users"),
        ("5", "behaviours of new users"),
        ("6", "pooled attributes h_a"),
        ("6", "virtual behaviours"),
    ]
    assert np.array_equal(pairs[0].first_ND, found.real_UD[1::2]) and np.array_equal(
        pairs[0].second_MD, found.virtual_UD[1::2]
    )
    assert np.array_equal(pairs[2].first_ND, found.attributes_UE[1::2]) and np.array_equal(
        pairs[3].second_MD, found.virtual_UD[::2]
    )
    assert set(pairs[0].similarity_metrics()) == {
        "two_sample_auc",
        "r2",
        "rescaled_r2",
        "cosine",
    } and set(pairs[2].similarity_metrics()) == {"two_sample_auc"}


def test_perfect_virtual_behaviours_are_not_told_apart_and_explain_all() -> None:
    found = some(1000)
    perfect = UserVectors(
        found.users_U,
        found.is_new_U,
        found.has_real_U,
        *[found.real_UD] * 2,
        found.attributes_UE,
    )
    numbers = vector_pairs(perfect)[0].similarity_metrics()
    assert (
        numbers["two_sample_auc"] == pytest.approx(0.5, abs=0.06)
        and numbers["r2"] == numbers["rescaled_r2"] == 1
    )
    assert numbers["cosine"] == pytest.approx(1)


def test_users_without_known_behaviours_and_small_sets_are_left_out(
    run: TrainingJob, tmp_path: Path
) -> None:
    assert [pair.title for pair in vector_pairs(some(100, with_history=False))][0:2] == [
        "behaviours of old users",
        "pooled attributes h_a",
    ]
    assert vector_pairs(some(18)) == []
    with pytest.raises(
        ValueError,
        match=r"figures: MAIL-DMR should have met 10 new and as many old users in the test data; "
        r"take more rows",
    ):
        make_figures([run], tmp_path, num_users=5)


def test_figures_of_a_run_have_pictures_numbers_and_verdicts(
    run: TrainingJob, tmp_path: Path
) -> None:
    section = make_figures([run], tmp_path, num_users=100)
    assert [file for file in section.plots if not (tmp_path / file).stat().st_size] == []
    assert list(section.plots) == [
        "figure4-MAIL-DMR.png",
        "figure5-MAIL-DMR.png",
        "figure6-MAIL-DMR.png",
    ]
    assert [len(pair["metrics"]) for pair in section.content["pairs"]] == [4, 4, 1, 1] and len(
        section.verdicts
    ) == 4
    assert (
        "behaviours of new users: real and virtual ones are told apart with AUC"
        in section.verdicts[1]
    )


def test_methods_with_a_zero_shot_tower_alone_have_figures() -> None:
    cold_start = ColdStartSettings()
    assert section_methods("figures", [], cold_start) == ["MAIL-BaseDNN"]
    assert section_methods("figures", ["MAIL-DMR"], cold_start) == ["MAIL-DMR"]
    for section, method in (
        ("figures", "BaseDNN"),
        ("figures", "MAIL-None"),
        ("warmup", "DMR oracle"),
        ("warmup", "LLAE"),
    ):
        with pytest.raises(ValueError, match=rf"{section} has no method \['{method}'\]; it has: "):
            section_methods(section, [method], cold_start)


@pytest.mark.slow
@pytest.mark.usefixtures("preloaded_runs")
def test_everything_is_reproduced_with_one_command(
    run: TrainingJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warmup, "KEPT", (0, 2))
    arguments = [
        "--config",
        str(run.path.parent / "small.yaml"),
        "--out",
        str(tmp_path / "out"),
        "--seeds",
        "1",
    ]
    chosen = ["--method", "BaseDNN", "--method", "MAIL-BaseDNN"]
    done = CliRunner().invoke(main, ["reproduce", "all", *arguments, *chosen, "--paper", "public"])
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert (
        list(report["sections"]) == ["table2", "table3", "figures", "warmup"]
        and report["name"] == "small"
    )
    html = (tmp_path / "out/report.html").read_text()
    HTMLParser().feed(html)
    assert (
        html.count("<img ") == 6 == html.count("data:image/png;base64,")
        and "The paper&#x27;s own metrics (public dataset)" in html
    )
    assert "--method MAIL-BaseDNN" in html and str(tmp_path / "out/report.html") in done.stdout

    def written() -> dict[Path, int]:
        parts = (tmp_path / "out/runs").rglob("part-*.parquet")
        return {path: path.stat().st_mtime_ns for path in parts}

    first = written()
    assert len(first) == 2 * 2
    assert CliRunner().invoke(main, ["reproduce", "warmup", *arguments, *chosen]).exit_code == 0
    assert written() == first
    unknown = CliRunner().invoke(main, ["reproduce", "all", *arguments, "--method", "Nobody"])
    assert unknown.exit_code == 1 and "there is no method ['Nobody']; there are: " in unknown.output
