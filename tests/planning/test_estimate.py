"""Answers of the planner: memory that adds up, remedies that help, questions that cannot be asked."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner

from mail_torchrec.cli import main
from mail_torchrec.config import load_config
from mail_torchrec.losses.mmd import mmd
from mail_torchrec.planning.command import ask
from mail_torchrec.planning.estimate import TABLE_PARTS, Answer
from mail_torchrec.planning.scenarios import Question, question
from mail_torchrec.train.assembly import feature_tables_of
from mail_torchrec.train.dense_cost import dense_cost
from tests.support.small_rows import config_tree

ROWS = {"age": 5, "city": 100, "hour": 24, "item": 4_000_000, "actions": 9, "tags": 50_000}
WORDS = (
    "--hardware",
    "h100",
    *(word for table, rows in ROWS.items() for word in ("--rows", f"{table}={rows}")),
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "small.yaml"
    path.write_text(yaml.safe_dump(config_tree(Path("nowhere"))))
    return path


def asked(config: Path, *overrides: str, **given: Any) -> Question:
    words = {"hardware_name": "h100", "figures": (), "ranks": "4", "batch_sizes": None, "vary": ()}
    return question(
        config,
        overrides,
        rows=tuple(f"{table}={rows}" for table, rows in ROWS.items()),
        **words | given,
    )


def short_of_memory(config: Path, *overrides: str, **given: Any) -> Answer:
    """4 million items and their twins take 122 MiB a table, and with Adagrad's state as much again."""
    [found] = ask(asked(config, *overrides, figures=("hbm_gib=0.1",), **given))
    return found


def test_memory_adds_up_from_the_shards_of_the_plan_file(config: Path) -> None:
    [found] = ask(asked(config, "train.tables.name=rowwise_adagrad"))
    assert found.fits
    weights_R, state_R = np.zeros(4), np.zeros(4)
    for table in json.loads(found.plan_text())["tables"].values():
        for rank, _, _, rows, columns in table["shards"]:
            weights_R[rank] += 4 * rows * columns
            state_R[rank] += 4 * rows
    parts = found.content()["table_memory_of_ranks"]
    assert (
        parts["table weights"] == weights_R.tolist()
        and parts["optimizer state"] == state_R.tolist()
    )
    assert weights_R.sum() >= 4 * 8 * 2 * ROWS["item"]
    assert min(found.table_memory_R[TABLE_PARTS[2]]) >= 0
    assert found.peak_memory == pytest.approx(
        found.layout.memory_R["hbm"].max() + sum(found.dense_memory.values())
    )


def test_what_is_short_is_short_by_that_much_and_the_remedies_that_help_do(config: Path) -> None:
    missed = short_of_memory(config)
    assert not missed.fits and "GPU memory" in missed.lacks
    lacking = missed.peak_memory - missed.capacity
    enough = f"hbm_gib={0.1 + (lacking + 1e4) / 0.9 / 2**30}"
    assert ask(asked(config, figures=(enough,)))[0].fits
    helping = {remedy.change for remedy in missed.remedies if remedy.answer.fits}
    assert {"--ranks 8", "sharding.kernels=[fused, fused_uvm_caching]"} <= helping
    assert "train.batch_size=16" not in helping
    for change in helping:
        ranks = (
            change.removeprefix("--ranks ").partition(" ")[0]
            if change.startswith("--ranks")
            else "4"
        )
        overrides = [] if change.startswith("--ranks") else _settings(change)
        assert short_of_memory(config, *overrides, ranks=ranks).fits, change


def _settings(change: str) -> list[str]:
    """The settings of a remedy as the command line would take them."""
    parts = change.replace(", ", ",").split(" ")
    return [part.replace(",", ", ") for part in parts]


def test_a_point_that_fits_fits_with_more_memory_and_more_of_the_grid_changes_no_point(
    config: Path,
) -> None:
    fits = [ask(asked(config, figures=(f"hbm_gib={gib}",)))[0].fits for gib in (0.05, 0.2, 0.5)]
    assert fits == sorted(fits) and fits[-1] and not fits[0]
    grid = ask(
        asked(config, ranks="2,4", batch_sizes="32,64", vary=("train.tables.name=sgd;adam",))
    )
    assert [found.case.name for found in grid[:3]] == [
        "2 x 32, train.tables.name=sgd", "2 x 64, train.tables.name=sgd", "4 x 32, train.tables.name=sgd"
    ]  # fmt: skip
    [alone] = ask(asked(config, "train.tables.name=adam", batch_sizes="64"))
    assert grid[-1].peak_memory == alone.peak_memory and grid[-1].step == alone.step


@pytest.mark.parametrize(("words", "message"), [
    (["--hardware", "h1000"], "unknown hardware 'h1000'; known are a100-40, a100-80, h100, h200, b200, cpu"),
    (["--set", "hbm=90"], "hardware has no figure 'hbm'; it has ranks_a_host, hbm_gib"),
    (["--set", "hbm_gib=much"], "--set hbm_gib should be a number, received 'much'"),
    (["--set", "inter_gb_s=-1"], "--set inter_gb_s: should be a positive number"),
    (["--ranks", "0"], "--ranks should be at least 1, received 0"),
    (["--ranks", "eight"], "--ranks should be numbers with commas between them"),
    (["--rows", "itme=9"], "--rows: no table is called ['itme']"),
    (["--rows", "item=many"], "--rows should be TABLE=N with a positive number"),
    (["--vary", "train.tables.name"], "--vary should be KEY=VALUE;VALUE"),
    (["--hardware", "cpu", "sharding.kernels=[fused_uvm]"], "exist on CUDA alone, and the tables lie on CPU"),
    (["--hardware", "cpu", "train.tables.name=adam"], "FBGEMM has no fused 'adam' on CPU"),
    (["sharding.kernels=[key_value]"], "key_value tables train with rowwise_adagrad, received train.tables.name=adagrad"),
    (["sharding.table_kernels={itme: [fused]}"], "sharding.table_kernels: no table is called ['itme']"),
    (["sharding.types=[table_row_wise]", "--ranks", "12"], "12 ranks do not fill hosts of 8"),
    (["sharding.types=[grid_shard]"], "no choice is left for a table"),
    (["sharding.tables={item: []}"], "['item'] should be allowed something"),
    (["sharding.lengths={history: 7}"], "sharding.lengths.history should lie between 0 and its max_length, 6, received 7"),
    (["sharding.lengths={age: 1}"], "no list column is called 'age'; the lists are actions, history, tags"),
])  # fmt: skip
def test_a_question_that_cannot_be_asked_is_one_message(
    config: Path, words: list[str], message: str
) -> None:
    done = CliRunner().invoke(
        main, ["plan", "--config", str(config), "--ranks", "4", *WORDS, *words]
    )
    assert done.exit_code == 1 and message in done.output, done.output


def test_a_vocabulary_of_unknown_size_is_asked_for(config: Path) -> None:
    done = CliRunner().invoke(
        main,
        ["plan", "--config", str(config), "--ranks", "4", "--hardware", "h100", "--rows", "item=9"],
    )
    assert (
        "how many rows have the vocabularies of actions, age, city, hour, tags?" in done.output
        and "--rows actions=N" in done.output
    )


def test_the_towers_cost_is_what_torch_allocates(config: Path) -> None:
    settings = load_config(config, [])
    cost = dense_cost(settings, feature_tables_of(settings), ROWS)
    one, two = (cost.memory(rows, 1)["activations"] for rows in (64, 128))
    assert two == pytest.approx(2 * one, rel=0.1) and one > 64 * 6 * 8 * 4
    assert cost.memory(64, 1)[
        "adam"
    ] == 8 * cost.parameters and "mmd over all ranks" not in cost.memory(64, 1)
    # The MMD over all ranks: what torch keeps for own rows against those of 3 more ranks, beside
    # what one rank keeps.
    kept = {
        ranks: _kept(torch.rand(64, 12, requires_grad=True), torch.rand(64 * ranks, 12))
        for ranks in (1, 4)
    }
    assert cost.memory(64, 4)["mmd over all ranks"] == pytest.approx(kept[4] - kept[1], rel=0.1)
    own = load_config(config, ["model.mmd_over_all_ranks=false"])
    assert "mmd over all ranks" not in dense_cost(own, feature_tables_of(own), ROWS).memory(64, 4)


def _kept(rows: torch.Tensor, all_rows: torch.Tensor) -> int:
    kept: dict[int, int] = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        mmd(rows, rows * 2, 1.0, all_rows, all_rows * 2)
    return sum(kept.values())


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.sources += [value or "" for name, value in attributes if name in ("src", "href")]


def test_the_report_has_every_point_and_asks_nobody_for_anything(
    config: Path, tmp_path: Path
) -> None:
    words = [
        "plan",
        "--config",
        str(config),
        *WORDS,
        "--ranks",
        "1,16",
        "--set",
        "hbm_gib=0.1",
        "--out",
        str(tmp_path),
    ]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert "does not fit: it lacks" in done.output and "--ranks" in done.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert [(point["ranks"], point["fits"]) for point in report["points"]] == [
        (1, False),
        (16, True),
    ]
    assert (
        report["figures"]["hbm_gib"] == 0.1
        and "set by hand: hbm_gib=0.1" in report["figures"]["source"]
    )
    page = _Page((tmp_path / "report.html").read_text())
    assert len(page.sources) == 3 and all(
        source.startswith("data:image/png;base64,") for source in page.sources
    )
    assert not page.tags & {"script", "link", "iframe"}
    assert sorted(path.name for path in tmp_path.glob("plan*.json")) == ["plan-16x32.json"]
    assert done.output.splitlines()[0] in (tmp_path / "report.md").read_text().splitlines()
