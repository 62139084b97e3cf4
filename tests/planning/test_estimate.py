"""Plan estimates: memory that adds up, suggestions that help, scenarios that are refused."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from mail_torchrec.cli import main
from mail_torchrec.config import dump_config, load_config
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.source import Source
from mail_torchrec.embeddings.constraints import HAS_PREFETCH_STAGES
from mail_torchrec.planning.command import estimate_grid
from mail_torchrec.planning.estimate import TABLE_PARTS, PlanEstimate
from mail_torchrec.planning.scenarios import ScenarioGrid, parse_grid
from mail_torchrec.records.run_record import begin_record
from mail_torchrec.train.cost.pair_losses import ALIGNMENT
from tests.support.small_rows import config_tree, write_rows

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


def grid(config: Path, *overrides: str, **given: Any) -> ScenarioGrid:
    options = {
        "hardware_name": "h100",
        "hardware_overrides": (),
        "ranks": "4",
        "batch_sizes": None,
        "vary": (),
        "rows": tuple(f"{table}={rows}" for table, rows in ROWS.items()),
    }
    return parse_grid(config, overrides, **options | given)


def short_of_memory(config: Path, *overrides: str, **given: Any) -> PlanEstimate:
    """Two tables of 4 million items take 122 MiB each, and Adagrad's state as much again."""
    small = ("hbm_gib=0.1",)
    [found] = estimate_grid(grid(config, *overrides, hardware_overrides=small, **given))
    return found


def test_two_byte_formats_halve_the_estimated_exchange_of_vectors_and_gradients(
    config: Path,
) -> None:
    """What is sent of ids stays as it is."""
    forced = "schema.dim=128", "sharding.sharding_types=[table_wise]"
    formats = "{forward: fp16, backward: bf16, dense_gradients: bf16}"
    [exact] = estimate_grid(grid(config, *forced))
    [rounded] = estimate_grid(grid(config, *forced, f"sharding.communication={formats}"))
    assert 2 * rounded.dense_cost.gradient_bytes() == exact.dense_cost.gradient_bytes() > 0
    times = [float(found.plan.comms_R.max()) for found in (exact, rounded)]
    assert times[0] / 2 <= times[1] < 0.6 * times[0]
    assert rounded.step_time.communication < exact.step_time.communication


def test_a_prefetch_hides_the_way_from_host_memory_to_the_cache(config: Path) -> None:
    cached = "sharding.compute_kernels=[fused_uvm_caching]"
    [plain] = estimate_grid(grid(config, cached))
    prefetching = grid(config, cached, "sharding.prefetch=true")
    if not HAS_PREFETCH_STAGES:
        with pytest.raises(ValueError, match="needs TorchRec"):
            estimate_grid(prefetching)
        return
    [prefetched] = estimate_grid(prefetching)
    assert prefetched.step_time.lookup < plain.step_time.lookup
    assert prefetched.peak_memory >= plain.peak_memory


@pytest.mark.parametrize(
    ("overrides", "hardware", "fault"),
    [
        ((), "cpu", "exists on CUDA alone"),
        ((), "h100", "does not allow; add fused_uvm_caching"),
        (("sharding.enabled=false",), "h100", "should be left out with sharding.enabled=false"),
    ],
)
def test_a_prefetch_without_caches_is_refused(
    config: Path, overrides: tuple[str, ...], hardware: str, fault: str
) -> None:
    given = grid(config, "sharding.prefetch=true", *overrides, hardware_name=hardware)
    with pytest.raises(ValueError, match=fault):
        estimate_grid(given)


def test_copies_of_the_tables_are_planned_for_a_group_and_averaged_in_each_step(
    config: Path,
) -> None:
    [two] = estimate_grid(grid(config, ranks="2"))
    [four] = estimate_grid(grid(config, ranks="4"))
    [copied] = estimate_grid(grid(config, "sharding.replicas=2", ranks="4"))
    assert copied.plan_text() == two.plan_text()
    other_of_four = four.step_time.communication - float(four.plan.comms_R.max())
    other = copied.step_time.communication - float(copied.plan.comms_R.max())
    held = copied.table_memory_R["table weights"] + copied.table_memory_R["optimizer state"]
    # A ring sends half of the bytes twice, at 60 % of an H100's 450 GB/s.
    assert other - other_of_four == pytest.approx(held.max() / (0.6 * 450e6))
    missed = short_of_memory(config, "sharding.replicas=2")
    changes = [suggestion.change for suggestion in missed.suggestions]
    assert "sharding.replicas=null" in changes
    assert not any("compute_kernels" in change for change in changes)


def test_memory_adds_up_from_the_shards_of_the_plan_file(config: Path) -> None:
    [found] = estimate_grid(grid(config, "train.tables.name=rowwise_adagrad"))
    assert found.fits
    weights_R, state_R = np.zeros(4), np.zeros(4)
    for table in json.loads(found.plan_text())["tables"].values():
        for rank, _, _, rows, columns in table["shards"]:
            weights_R[rank] += 4 * rows * columns
            state_R[rank] += 4 * rows
    parts = found.as_json()["table_memory_of_ranks"]
    assert (
        parts["table weights"] == weights_R.tolist()
        and parts["optimizer state"] == state_R.tolist()
    )
    assert weights_R.sum() >= 4 * 8 * 2 * ROWS["item"]
    assert min(found.table_memory_R[TABLE_PARTS[2]]) >= 0
    assert found.peak_memory == pytest.approx(
        found.plan.memory_R["hbm"].max() + sum(found.dense_memory.values())
    )


def test_the_shortage_would_be_enough_and_suggestions_that_help_do(config: Path) -> None:
    missed = short_of_memory(config)
    assert not missed.fits and "GPU memory" in missed.shortage
    lacking = missed.peak_memory - missed.capacity
    enough = f"hbm_gib={0.1 + (lacking + 1e4) / 0.9 / 2**30}"
    assert estimate_grid(grid(config, hardware_overrides=(enough,)))[0].fits
    helping = {suggestion.change for suggestion in missed.suggestions if suggestion.estimate.fits}
    assert {"--ranks 8", "sharding.compute_kernels=[fused, fused_uvm_caching]"} <= helping
    assert "train.batch_size=16" not in helping
    for change in helping:
        ranks = (
            change.removeprefix("--ranks ").partition(" ")[0]
            if change.startswith("--ranks")
            else "4"
        )
        overrides = [] if change.startswith("--ranks") else _settings(change)
        assert short_of_memory(config, *overrides, ranks=ranks).fits, change


def test_a_suggestion_lifts_the_constraints_of_single_tables(config: Path) -> None:
    constrained = (
        "sharding.constraints.item.sharding_types=[table_wise]",
        "sharding.constraints.item.compute_kernels=[fused]",
    )
    missed = short_of_memory(config, *constrained)
    estimates = {suggestion.change: suggestion.estimate for suggestion in missed.suggestions}
    assert (
        "sharding.sharding_types=[table_wise, column_wise, row_wise] "
        "sharding.constraints.item.sharding_types=null"
    ) in estimates
    change = (
        "sharding.compute_kernels=[fused, fused_uvm_caching] "
        "sharding.constraints.item.compute_kernels=null"
    )
    assert not missed.fits and estimates[change].fits
    again = short_of_memory(config, *constrained, *_settings(change))
    assert again.fits and again.peak_memory == estimates[change].peak_memory


def _settings(change: str) -> list[str]:
    """The settings of a suggestion as the command line would take them."""
    parts = change.replace(", ", ",").split(" ")
    return [part.replace(",", ", ") for part in parts]


def test_more_memory_keeps_a_fit_and_a_larger_grid_changes_no_scenario(config: Path) -> None:
    fits = [
        estimate_grid(grid(config, hardware_overrides=(f"hbm_gib={gib}",)))[0].fits
        for gib in (0.05, 0.2, 0.5)
    ]
    assert fits == sorted(fits) and fits[-1] and not fits[0]
    estimates = estimate_grid(
        grid(config, ranks="2,4", batch_sizes="32,64", vary=("train.tables.name=sgd;adam",))
    )
    assert [found.scenario.name for found in estimates[:3]] == [
        "2 x 32, train.tables.name=sgd",
        "2 x 64, train.tables.name=sgd",
        "4 x 32, train.tables.name=sgd",
    ]  # fmt: skip
    [alone] = estimate_grid(grid(config, "train.tables.name=adam", batch_sizes="64"))
    assert estimates[-1].peak_memory == alone.peak_memory
    assert estimates[-1].step_time == alone.step_time


@pytest.mark.parametrize(("words", "message"), [
    (["--hardware", "h1000"],
     "unknown hardware 'h1000'; known are a100-40, a100-80, h100, h200, b200, cpu"),
    (["--set", "hbm=90"], "hardware has no key 'hbm'; it has local_world_size, hbm_gib"),
    (["--set", "hbm_gib=much"], "--set hbm_gib should be a number, received 'much'"),
    (["--set", "inter_gb_s=-1"], "--set inter_gb_s: should be a positive number"),
    (["--ranks", "0"], "--ranks should be at least 1, received 0"),
    (["--ranks", "eight"], "--ranks should be numbers with commas between them"),
    (["--rows", "itme=9"], "--rows: no table is called ['itme']"),
    (["--rows", "item=many"], "--rows should be TABLE=N with a positive number"),
    (["--vary", "train.tables.name"], "--vary should be KEY=VALUE;VALUE"),
    (["--hardware", "cpu", "sharding.compute_kernels=[fused_uvm]"],
     "exist on CUDA alone, and the tables lie on CPU"),
    (["--hardware", "cpu", "sharding.replicas=2"], "2D parallelism exists on CUDA alone"),
    (["sharding.replicas=3"], "should divide the ranks of the job, 4, received 3"),
    (["sharding.replicas=2", "sharding.compute_kernels=[fused, fused_uvm]"],
     "['fused_uvm'] are allowed too, leave them out"),
    (["--hardware", "cpu", "train.tables.name=adam"], "FBGEMM has no fused 'adam' on CPU"),
    (["sharding.compute_kernels=[key_value]"],
     "tables on an SSD (key_value) need operators that no published FBGEMM has"),
    (["sharding.ssd_directory=/mnt/nvme"], "no published FBGEMM has; use compute_kernels="),
    (["sharding.constraints.item.compute_kernels=[fused, key_value]"], "no published FBGEMM has"),
    (["sharding.constraints.itme.compute_kernels=[fused]"],
     "sharding.constraints: no table is called ['itme']"),
    (["sharding.sharding_types=[table_row_wise]", "--ranks", "12"],
     "12 ranks do not fill hosts of 8"),
    (["sharding.sharding_types=[grid_shard]"], "no sharding option is left for a table"),
    (["sharding.constraints.item.sharding_types=[]"],
     "sharding.constraints.item.sharding_types: List should have at least 1 item"),
    (["sharding.constraints.item.sharding_types=[by_row]"],
     "sharding.constraints.item.sharding_types.0: Input should be 'table_wise', 'column_wise'"),
    (["sharding.pooling_factors={history: 7}"],
     "sharding.pooling_factors.history should lie between 0 and its max_length, 6, received 7"),
    (["sharding.pooling_factors={age: 1}"],
     "no list column is called 'age'; the lists are actions, history, tags"),
])  # fmt: skip
def test_an_impossible_scenario_is_refused_with_one_message(
    config: Path, words: list[str], message: str
) -> None:
    done = CliRunner().invoke(
        main, ["plan", "--config", str(config), "--ranks", "4", *WORDS, *words]
    )
    assert done.exit_code == 1 and message in done.output, done.output


def test_a_vocabulary_of_unknown_size_is_refused_with_its_option(
    config: Path,
) -> None:
    done = CliRunner().invoke(
        main,
        ["plan", "--config", str(config), "--ranks", "4", "--hardware", "h100", "--rows", "item=9"],
    )
    assert (
        "the vocabularies of actions, age, city, hour, tags should have a known number of rows"
        in done.output
    )
    assert "--rows actions=N" in done.output


@pytest.mark.parametrize("named", [".", "config.yaml"])
def test_a_run_knows_the_rows_of_its_vocabularies(config: Path, tmp_path: Path, named: str) -> None:
    write_rows(tmp_path / "rows/train/a.parquet", 90, seed=1)
    settings = load_config(config, [f"data.root={tmp_path / 'rows'}"])
    encoders = fit_encoders(
        Source(str(tmp_path / "rows/train"), settings.schema_),
        settings.schema_,
        settings.data.cold_start,
    )
    encoders.save(tmp_path / "vocabularies")
    (tmp_path / "config.yaml").write_text(dump_config(settings))
    begin_record(tmp_path, ["config.yaml", "vocabularies"])

    def rows_of(*overrides: str, rows: tuple[str, ...] = ()) -> dict[str, int]:
        return next(grid(tmp_path / named, *overrides, rows=rows).scenarios()).num_rows

    assert rows_of("schema.dim=16") == encoders.num_rows
    assert rows_of(rows=("item=9",)) == encoders.num_rows | {"item": 9}
    hashed = ["schema.tables.city.ids=hash", "schema.tables.city.rows=77"]
    assert rows_of(*hashed) == encoders.num_rows | {"city": 77}
    # Another vocabulary than the run's: its size is not known.
    with pytest.raises(ValueError, match="the vocabularies of item should have a known number"):
        rows_of("schema.tables.item.min_count=3")


def test_scenarios_that_differ_in_the_schema_have_their_own_towers(config: Path) -> None:
    narrow, wide = estimate_grid(grid(config, vary=("schema.dim=8;32",)))
    assert narrow.dense_memory["weights"] < wide.dense_memory["weights"]
    assert narrow.dense_memory["batches"] == wide.dense_memory["batches"]


def test_scenarios_that_differ_in_number_formats_have_their_own_cost(config: Path) -> None:
    formats = "sharding.communication={dense_gradients: fp32};{dense_gradients: bf16}"
    exact, rounded = estimate_grid(grid(config, vary=(formats,)))
    assert 2 * rounded.dense_cost.gradient_bytes() == exact.dense_cost.gradient_bytes() > 0
    given = {"hardware_name": "cpu", "vary": ("train.precision=float32;bfloat16",)}
    whole, in_blocks = (
        found.dense_memory[ALIGNMENT] for found in estimate_grid(grid(config, **given))
    )
    # 4 kernels and their distances, of 32 rows with those of 4 ranks.
    assert 0 < whole - in_blocks - 4 * 8 * 32 * 128 < 4 * 10 * 12 * (32 + 128)


def test_much_memory_of_l_d_is_noted_with_what_makes_it_less(config: Path) -> None:
    notes = {}
    for ranks in ("1", "2"):
        few_gib = {"hardware_name": "cpu", "hardware_overrides": ("host_gib=32",)}
        [found] = estimate_grid(grid(config, ranks=ranks, batch_sizes="8192", **few_gib))
        assert found.dense_memory[ALIGNMENT] == pytest.approx(
            4 * 8 * 8192**2 * int(ranks), rel=0.01
        )
        [notes[ranks]] = found.notes
    assert notes["1"] == (
        "L_d over a rank's own rows takes 2.0 GiB of each rank, and grows with the square of the "
        "batch: a smaller train.batch_size or model.zero_shot.loss_sample_share helps"
    )
    assert notes["2"] == (
        "L_d over the rows of all ranks takes 4.0 GiB of each rank, and grows with ranks times "
        "the square of the batch: model.mmd_over_all_ranks=false compares each rank's own rows"
    )
    [on_gpu] = estimate_grid(grid(config, batch_sizes="8192"))
    assert on_gpu.notes == []


class _Report(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.sources += [value or "" for name, value in attributes if name in ("src", "href")]


def test_the_report_has_every_scenario_and_makes_no_requests(config: Path, tmp_path: Path) -> None:
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
    assert [(scenario["ranks"], scenario["fits"]) for scenario in report["scenarios"]] == [
        (1, False),
        (16, True),
    ]
    assert (
        report["hardware_specs"]["hbm_gib"] == 0.1
        and "set by hand: hbm_gib=0.1" in report["hardware_specs"]["source"]
    )
    html = _Report((tmp_path / "report.html").read_text())
    assert len(html.sources) == 3 and all(
        source.startswith("data:image/png;base64,") for source in html.sources
    )
    assert not html.tags & {"script", "link", "iframe"}
    assert sorted(path.name for path in tmp_path.glob("plan*.json")) == ["plan-16x32.json"]
    assert done.output.splitlines()[0] in (tmp_path / "report.md").read_text().splitlines()
