"""N ranks under any plan train as one rank does."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist

from mail_torchrec.checkpoint.storage import read_tensor_metadata, read_tensors, write_tensors
from mail_torchrec.config import Config
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.data.reading.chunk import Chunk
from mail_torchrec.data.reading.partition import RankInfo
from mail_torchrec.data.reading.reader import Reader
from mail_torchrec.data.source import Source
from mail_torchrec.train.assembly import assemble, table_keys
from mail_torchrec.train.data_splits import negative_samplers
from mail_torchrec.train.evaluation import evaluate
from tests.support.ranks import run_ranks
from tests.support.sequence_rows import AS_AUTHORS
from tests.support.small_rows import SCHEMA, WITH_ID, baseline_tree, config_tree
from tests.support.task_rows import PLE, TASK_SCHEMA, TASKS, add_task_labels
from tests.support.weighted_rows import WEIGHTED, write_weighted_rows

pytestmark = pytest.mark.distributed

PLANS = {
    "table_wise": {"sharding_types": ["table_wise"]},
    "row_wise": {"sharding_types": ["row_wise"]},
    "column_wise": {"sharding_types": ["column_wise"], "min_partition": 4},
}
NUM_STEPS, NUM_ROWS = 4, 42


def train_on_ranks(
    root: str,
    sharding: dict[str, Any],
    model: dict[str, Any],
    weights: str,
    optimization: dict[str, Any] | None = None,
    schema: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains on equal global batches on any number of ranks, and saves the weights."""
    # Adam and Adagrad divide by |gradient| + eps: a large eps keeps rounding from being blown up to
    # whole steps.
    train = {"eps": 0.1, "learning_rate": 0.05, "tables": {"eps": 0.1, "learning_rate": 0.1}}
    train |= optimization or {}
    schema = schema or (WITH_ID if model.get("baseline") else SCHEMA)
    sections = {"sharding": sharding, "model": model, "train": train, "schema": schema}
    config = Config.model_validate(config_tree(Path(root), **sections, data=data or {}))
    source = Source(config.data.path("train"), config.schema_)
    encoders = fit_encoders(source, config.schema_, config.data.cold_start)
    assembled = assemble(config, encoders, torch.device("cpu"), reads_vectors=True)
    batches = own_batches(config, source, encoders, assembled)
    losses, scores = [], []
    for _ in range(NUM_STEPS):
        output = assembled.pipeline.progress(batches)
        losses.append({name: float(value) for name, value in output.losses.items()})
    assembled.model.eval()
    with torch.no_grad():
        for _ in range(NUM_STEPS):
            output = assembled.pipeline.progress(batches)
            scores.append(torch.stack([output.logits_B, *output.tasks.values()], dim=1))
    metrics = evaluated(config, source, encoders, assembled)
    write_tensors(assembled.model.state_dict(), Path(weights), dist.group.WORLD)
    kinds = {p.sharding_type for module in assembled.plan.plan.values() for p in module.values()}
    return {
        "losses": losses,
        "scores": scores,
        "metrics": metrics,
        "kinds": kinds,
        "tables": table_keys(config, assembled.feature_tables, encoders),
    }


def evaluated(config: Config, source: Source, encoders: Encoders, assembled: Any) -> dict[str, Any]:
    """The metrics of all rows, as the trainer takes them from batches of each rank's share."""
    reader = Reader(
        source,
        config.schema_,
        encoders,
        assembled.feature_tables,
        config.data,
        rank_info=RankInfo(dist.get_rank(), dist.get_world_size()),
        batch_size=25,
        shuffle=False,
        seed=3,
    )
    return dict(evaluate(assembled, reader, reader).metrics)  # type: ignore[arg-type]


def own_batches(config: Config, source: Source, encoders: Encoders, assembled: Any) -> Any:
    """This rank's part of the global batches.

    In step 0 the first of two ranks has old rows alone and the last one new rows; in step 1 the
    last row has weight 0; in the last two steps there is no old row on any rank, and no new one.
    """
    reader = Reader(
        source,
        config.schema_,
        encoders,
        assembled.feature_tables,
        config.data,
        rank_info=RankInfo(),
        batch_size=NUM_ROWS,
        shuffle=False,
        seed=3,
        samplers=negative_samplers(config, encoders, assembled.feature_tables),
    )
    chunk = Chunk.concatenate(
        [reader._encode(source.read(group), source.file(group)) for group in source.row_groups]
    )
    new, old = np.flatnonzero(chunk.is_cold_R), np.flatnonzero(~chunk.is_cold_R)
    rows_of = [
        np.concatenate([old[: NUM_ROWS // 2], new[: NUM_ROWS // 2]]),
        *users_apart(chunk.users_R, NUM_STEPS - 3),
    ]
    rows_of += [rows[next(users_apart(chunk.users_R[rows], 1))] for rows in (new, old)]
    result: list[Batch] = []
    for step in [*range(NUM_STEPS), *range(NUM_STEPS)]:
        is_real = np.arange(NUM_ROWS) < NUM_ROWS - (step == 1)
        mine = np.array_split(np.arange(NUM_ROWS), dist.get_world_size())[dist.get_rank()]
        rows = chunk.take(rows_of[step][mine])
        random = partial(reader._rows.shuffle.random, 0, step)
        result.append(reader._collate(rows, np.arange(len(rows)), is_real[mine], random))
    assert (
        dist.get_rank() < dist.get_world_size() - 1
        or dist.get_world_size() == 1
        or bool(result[0].is_cold_B.all())
    )
    return iter(result)


def users_apart(users_R: Any, num_steps: int) -> Iterator[Any]:
    """Rows of so many steps, no user in both halves of one.

    MetaEmb pairs the rows of a user that one rank has.
    """
    by_user, start = np.argsort(users_R, kind="stable"), 0
    for _ in range(num_steps):
        halves = []
        for _ in range(2):
            halves.append(by_user[start : start + NUM_ROWS // 2])
            start = int(np.searchsorted(users_R[by_user], users_R[halves[-1][-1]], side="right"))
        yield np.concatenate(halves)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write_weighted_rows(folder / "train" / "a.parquet", 200, seed=1)
    add_task_labels(folder / "train" / "a.parquet", seed=1)
    vectors = np.random.default_rng(1).normal(0, 0.3, (30, 8)).tolist()
    pq.write_table(pa.table({"id": range(30), "vector": vectors}), folder / "items.parquet")
    return folder


def load(weights: Path) -> dict[str, torch.Tensor]:
    state = {
        key: torch.empty(item.size, dtype=item.properties.dtype)
        for key, item in read_tensor_metadata(weights).items()
    }
    read_tensors(state, weights)
    return state


@pytest.fixture(scope="module")
def one_rank(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("one")
    cache: dict[str, Any] = {}

    def run(name: str, model: dict[str, Any]) -> Any:
        if name not in cache:
            weights = folder / name / "weights"
            [result] = run_ranks(
                1,
                train_on_ranks,
                folder / name,
                str(root),
                PLANS["table_wise"],
                model,
                str(weights),
                None,
                SCHEMAS.get(name),
            )
            cache[name] = result, load(weights)
        return cache[name]

    return run


MODELS: dict[str, dict[str, Any]] = {
    "mail_dmr": config_tree(Path())["model"],
    "mail_base_dnn": config_tree(Path())["model"]
    | {"tower": "base_dnn", "tower_options": {"hidden_dims": [16, 8], "dropout": 0.0}},
    "dmr_multi_task": config_tree(Path())["model"]
    | {"zero_shot": None, "multi_task": {"hidden_dims": [6]}},
    "taught_deepfm": config_tree(Path())["model"]
    | {"tower": "deepfm", "tower_options": {"hidden_dims": [16, 8], "dropout": 0.0}}
    | {"zero_shot": config_tree(Path())["model"]["zero_shot"] | {"ranking_weight": 0.5}}
    | {"virtual_flag": True},
    "mean_fill": baseline_tree("mean_fill")["model"],
    "llae": baseline_tree("llae", solve_every=2, rank=2)["model"],
    "meta_emb": baseline_tree("meta_emb")["model"],
    "cvar": baseline_tree("cvar", noise=0, latent_dim=4)["model"],
    "mwuf": baseline_tree("mwuf")["model"],
    "contrastive": config_tree(Path())["model"]
    | {
        "zero_shot": config_tree(Path())["model"]["zero_shot"]
        | {"alignment": "contrastive", "temperature": 0.2, "alignment_weight": 0.5}
    },
    "weighted": config_tree(Path())["model"] | {"multi_task": {"hidden_dims": [6]}},
}
BEGUN = {"item": {"init_range": 0.3, "init_from": {"path": "items.parquet"}}}
MODELS["parts"] = MODELS["mail_dmr"]
MODELS["tasks"] = MODELS["mail_base_dnn"] | {"tasks": TASKS, "experts": PLE}
SCHEMAS: dict[str, dict[str, Any]] = {
    "tasks": TASK_SCHEMA,
    "weighted": WEIGHTED | {"tables": WEIGHTED["tables"] | BEGUN},
    "parts": AS_AUTHORS,
}
"""Schemas of the models that have another one."""


@pytest.mark.parametrize(
    ("model", "plan", "world_size"),
    [
        ("mail_dmr", "table_wise", 2),
        ("weighted", "row_wise", 2),
        ("weighted", "column_wise", 2),
        pytest.param("weighted", "table_wise", 2, marks=pytest.mark.long),
        pytest.param("mail_dmr", "row_wise", 2, marks=pytest.mark.long),
        pytest.param("mail_dmr", "column_wise", 2, marks=pytest.mark.long),
        ("mail_base_dnn", "row_wise", 3),
        pytest.param("dmr_multi_task", "row_wise", 2, marks=pytest.mark.long),
        ("tasks", "table_wise", 2),
        ("parts", "column_wise", 2),
        pytest.param("parts", "row_wise", 2, marks=pytest.mark.long),
        ("taught_deepfm", "column_wise", 2),
        ("mean_fill", "row_wise", 2),
        ("llae", "row_wise", 2),
        ("meta_emb", "row_wise", 2),
        ("cvar", "row_wise", 2),
        ("mwuf", "table_wise", 2),
        ("contrastive", "row_wise", 2),
    ],
)
def test_losses_weights_and_scores_equal_one_rank(
    root: Path, one_rank: Any, tmp_path: Path, model: str, plan: str, world_size: int
) -> None:
    expected, expected_weights = one_rank(model, MODELS[model])
    results = run_ranks(
        world_size,
        train_on_ranks,
        tmp_path,
        str(root),
        PLANS[plan],
        MODELS[model],
        str(tmp_path / "weights"),
        None,
        SCHEMAS.get(model),
    )
    assert results[0]["kinds"] == {plan}
    for step, losses in enumerate(expected["losses"]):
        assert losses.keys() == results[0]["losses"][step].keys()
        for name, value in losses.items():
            mean = np.mean([result["losses"][step][name] for result in results])
            assert mean == pytest.approx(value, rel=1e-4, abs=1e-6), (step, name)
    for step, scores in enumerate(expected["scores"]):
        # DMR's relevance bias has no gradient but rounding: batch norm takes it out in training,
        # its moving mean not quite.
        torch.testing.assert_close(
            torch.cat([result["scores"][step] for result in results]), scores, rtol=1e-4, atol=5e-4
        )
    for part, metrics in expected["metrics"].items():
        assert (MODELS[model].get("multi_task") is not None) == ("ctcvr_auc" in metrics)
        assert (model == "weighted") == ("weighted" in metrics)
        for result in results:  # two rows whose scores differ by rounding may change places
            for name, value in result["metrics"][part].items():
                assert value == pytest.approx(metrics[name], abs=1e-3), (part, name)
    weights = load(tmp_path / "weights")
    assert weights.keys() == expected_weights.keys()
    assert set(expected["tables"]) <= weights.keys()
    for key, value in expected_weights.items():
        bound = (
            6e-4 if key.endswith("running_mean") else 1e-4
        )  # the relevance bias again: it counts once a behaviour, of which there are 6
        torch.testing.assert_close(
            weights[key], value, rtol=1e-4, atol=bound, msg=lambda text, key=key: f"{key}: {text}"
        )
