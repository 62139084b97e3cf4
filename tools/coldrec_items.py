"""New items by ColdRec's split and metrics: recall and NDCG of all items ranked for each user.

    python tools/coldrec_items.py --config launch/configs/kuairand.yaml --out runs/coldrec --seeds 3

The clicks of a log are the pairs. A fifth of the items is cold: no training row and no history has
them (YuanchenBei/ColdRec, its proportions and seed). A tower is trained on the warm pairs, each
beside an item that its user did not click; its export then ranks all items for a sample of the test
users. What is finished is kept; runs of other settings or rows are refused.
"""

from collections.abc import Mapping
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mail_torchrec.cli.options import LOCAL_PATH, OUTPUT_DIR, OVERRIDES
from mail_torchrec.config import load_config
from mail_torchrec.export.command import ExportOptions, export
from mail_torchrec.inference.requests import USER_OF_CANDIDATE, Request
from mail_torchrec.inference.scorer import Scorer
from mail_torchrec.reporting.markdown import markdown_table
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.utils.run_files import write_file
from tools.coldrec.ranking_metrics import ranking_metrics
from tools.coldrec.rows import ClickLog, unread_columns, write_rows
from tools.coldrec.split import ColdRecSplit, Ints, split_pairs
from tools.kept_runs import train_once
from tools.tool_command import ToolCommand

METHODS: Mapping[str, list[str]] = {
    "base": [],
    "mean fill": ["model.virtual_items={fill: mean, dropout: 0.2}"],
    "virtual": ["model.virtual_items={dropout: 0.2}"],
    "clcrec": [
        "model.virtual_items={mse_weight: 0, contrast: {weight: 0.5}, ranking_weight: 0.5, "
        "dropout: 0.5}"
    ],
    "aldi": [
        "model.virtual_items={mse_weight: 0, ranking_weight: 1.0, distillation: {}, dropout: 0.2}"
    ],
    "content proxy": [
        "model.virtual_items={mse_weight: 0, ranking_weight: 1.0, contrast: {steps: 75}, "
        "dropout: 0.2}"
    ],
}
"""Overrides of each method; all but the base show virtual vectors of some warm items in training,
for ColdRec's training rows have no cold item."""
SETTINGS = ("cold", "warm", "overall")
Floats = npt.NDArray[np.float32]
Metrics = dict[str, dict[str, float]]


def item_scores(model: Path, log: ClickLog, users: Ints) -> Floats:
    """Scores all items of a log for some of its users, [users, items].

    Args:
        model: exported model.
        log: users and items.
        users: rows of the users [users].
    """
    scorer = Scorer(model)
    candidates = log.items.to_pylist()
    rows = log.users.take(pa.array(users)).to_pylist()
    of_items = scorer.encode([Request(rows[0], candidates)])
    candidate_inputs = {
        spec.name: of_items[spec.name]
        for spec in scorer.manifest.inputs
        if spec.shape[0] == "candidates"
    }
    candidate_inputs[USER_OF_CANDIDATE] = np.zeros(len(candidates), np.int64)
    found = []
    for row in rows:
        inputs = scorer.encode([Request(row, candidates[:1])]) | candidate_inputs
        found.append(scorer.run(inputs, ["pctr"])["pctr"])
    return np.stack(found)


def coldrec_metrics(
    scores: Floats, log: ClickLog, split: ColdRecSplit, users: Ints, k: int
) -> Metrics:
    """Computes recall and NDCG in ColdRec's three settings.

    Args:
        scores: of each user and item, [users, items].
        log: its clicks.
        split: of the clicks.
        users: rows of the users [users].
        k: length of the rankings.
    """

    def chosen(clicks: Ints) -> npt.NDArray[np.bool_]:
        is_chosen = np.zeros((len(log.users), len(log.items)), np.bool_)
        is_chosen[log.users_N[clicks], log.items_N[clicks]] = True
        return is_chosen[users]

    is_cold = np.zeros(len(log.items), np.bool_)
    is_cold[log.items_N[np.concatenate([split.cold_validation, split.cold_test])]] = True
    held = {"cold": split.cold_test, "warm": split.warm_test}
    held["overall"] = np.concatenate([split.cold_test, split.warm_test])
    left_out = {"cold": ~is_cold, "warm": is_cold, "overall": np.zeros_like(is_cold)}
    trained = chosen(split.train)
    return {
        setting: ranking_metrics(scores, chosen(held[setting]), trained | left_out[setting], k)
        for setting in SETTINGS
    }


def report(found: Mapping[str, list[Metrics]], k: int) -> str:
    """Formats means over seeds, with the standard deviation where there are several."""

    def text(values: list[float]) -> str:
        spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
        return f"{np.mean(values):.4f}{spread}"

    header = ["method", *(f"{one} {name}@{k}" for one in SETTINGS for name in ("recall", "NDCG"))]
    rows = [
        [
            method,
            *(
                text([seed[one][name] for seed in seeds])
                for one in SETTINGS
                for name in ("recall", "ndcg")
            ),
        ]
        for method, seeds in found.items()
    ]
    return markdown_table(header, rows)


def run_method(config: Path, common: list[str], name: str, seed: int, folder: Path) -> Path:
    """Trains and exports a method, unless it is there; returns the exported model."""
    run, model = RunDir(folder / "run"), folder / "model"
    own = [f"name={name}", f"train.seed={seed}"]
    train_once(load_config(config, [*common, *METHODS[name], *own]), run)
    if not model.exists():
        export(ExportOptions(run, model))
    return model


@click.command(cls=ToolCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", type=LOCAL_PATH, required=True)
@click.option("--out", type=OUTPUT_DIR, required=True)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--users", "num_users", type=click.IntRange(1), default=500, show_default=True)
@click.option("--k", type=click.IntRange(1), default=20, show_default=True)
@click.option("--method", "methods", type=click.Choice(list(METHODS)), multiple=True)
@OVERRIDES
def main(
    config: Path,
    out: Path,
    seeds: int,
    num_users: int,
    k: int,
    methods: tuple[str, ...],
    overrides: tuple[str, ...],
) -> None:
    """Train each method on ColdRec's warm pairs, and rank all items for the test users."""
    log = ClickLog.read(load_config(config, list(overrides)))
    split = split_pairs(log.users_N, log.items_N)
    cold = np.concatenate([split.cold_validation, split.cold_test])
    log = log.without(np.unique(log.items_N[cold]))
    write_rows(log, split, out / "rows", seed=1)
    tested = np.unique(log.users_N[np.concatenate([split.cold_test, split.warm_test])])
    users = np.random.default_rng(1).permutation(tested)[:num_users]
    common = [*overrides, f"data.root={(out / 'rows').resolve()}", "data.train=train"]
    common += ["data.test=test", "data.cold_start.hide_share=0", "model.zero_shot=null"]
    common += ["data.new_items={max_count: 0}"]
    common += [f"schema.columns.{name}=null" for name in unread_columns(log.schema)]
    head = (
        f"{len(log.users_N):,} clicks of {len(log.users):,} users and {len(log.items):,} items, "
        f"{len(np.unique(log.items_N[cold])):,} of them cold; {len(users):,} of {len(tested):,} "
        "test users"
    )
    found: dict[str, list[Metrics]] = {name: [] for name in methods or METHODS}
    for seed in range(1, seeds + 1):
        for name in found:
            folder = out / f"{name.replace(' ', '-')}-{seed}"
            scores = item_scores(run_method(config, common, name, seed, folder), log, users)
            found[name].append(coldrec_metrics(scores, log, split, users, k))
        page = f"{head}; seeds: {seed}.\n\n{report(found, k)}"
        write_file(out / "coldrec_items.md", page)
        click.echo(page)


if __name__ == "__main__":
    main()
