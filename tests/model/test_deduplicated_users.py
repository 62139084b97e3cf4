"""Deduplicated users: the same losses, gradients and scores as with each row a user of its own."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from mail_torchrec.config import Config
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.reading.batch import Batch, map_tensors
from mail_torchrec.data.reading.partition import RankInfo
from mail_torchrec.data.reading.reader import Reader
from mail_torchrec.data.source import Source
from mail_torchrec.model.lookup import feature_embeddings
from mail_torchrec.train.assembly import assemble
from mail_torchrec.train.data_splits import negative_samplers
from tests.support.small_rows import WITH_ID, baseline_tree, config_tree
from tests.support.weighted_rows import WEIGHTED, write_weighted_rows

pytestmark = pytest.mark.usefixtures("single_process")
CPU = torch.device("cpu")
USERS = 20
MAIL = config_tree(Path())["model"]
ZERO_SHOT = MAIL["zero_shot"]
SMALL_DMR = {"hidden_dims": [8], "num_negatives": 5}
NO_DROPOUT = {"tower_options": {"dropout": 0.0}}
MODELS: dict[str, dict[str, Any]] = {
    "mail-dmr": {},
    "dmr": {"model": {"zero_shot": None}},
    "all fields": {"model": {"zero_shot": ZERO_SHOT | {"input_fields": "all_fields"}}},
    "released code": {
        "model": {
            "zero_shot": ZERO_SHOT
            | {
                "alignment": "paired_mse",
                "fill": "infer_only",
                "decoders": "per_group",
                "reduction": "sum",
            }
        }
    },
    "standardised": {
        "model": {
            "zero_shot": ZERO_SHOT
            | {"standardise_targets": True, "padding": "masked", "virtual_length": "predicted"}
        }
    },
    "pooled": {
        "model": {
            "zero_shot": ZERO_SHOT
            | {"standardise_targets": True, "reconstruction_target": "pooled"}
        }
    },
    "conversions": {"model": {"multi_task": {}}},
    "ranked as cold": {"model": {"cold_loss_weight": 0.5}},
    "own tower": {"model": {"cold_loss_weight": 1.0, "new_user_tower": "own"}},
    "base_dnn": {"model": {"tower": "base_dnn", **NO_DROPOUT}},
    "deepfm": {"model": {"tower": "deepfm", **NO_DROPOUT}},
    "wide_deep": {"model": {"tower": "wide_deep", **NO_DROPOUT}},
    "din": {"model": {"tower": "din", "tower_options": {}}},
    "crosses": {"model": {"attribute_crosses": {"rank": 4}}},
    "contrastive": {"model": {"zero_shot": ZERO_SHOT | {"alignment": "contrastive"}}},
    "mean_fill": baseline_tree("mean_fill"),
    "llae": baseline_tree("llae", solve_every=1),
    "cvar": baseline_tree("cvar", noise=0),
    "mwuf": baseline_tree("mwuf"),
    "meta_emb": baseline_tree("meta_emb"),
    "meta_emb and dmr": {
        "schema": WITH_ID,
        "model": baseline_tree("meta_emb")["model"] | {"tower": "dmr", "tower_options": SMALL_DMR},
    },
    "an id": {"schema": WITH_ID},
    "weighted": {"schema": WEIGHTED},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each user comes in one to seven rows, which differ in item, hour and label alone."""
    folder = tmp_path_factory.mktemp("rows")
    write_weighted_rows(folder / "all.parquet", 300, seed=1)
    table = pq.read_table(folder / "all.parquet")
    _, first = np.unique(table["user"].to_numpy(), return_index=True)
    random = np.random.default_rng(0)
    of_users = np.repeat(first[:USERS], random.integers(1, 8, USERS))
    rows = table.take(of_users)
    of_rows = ("item", "hour", "clicked", "bought", "tags", "relevance", "content", "weather")
    for name in of_rows:
        rows = rows.set_column(
            rows.column_names.index(name), name, table[name].take(np.arange(len(of_users)))
        )
    (folder / "train").mkdir()
    pq.write_table(rows, folder / "train" / "a.parquet")
    return folder


def step_of(
    root: Path, sections: dict[str, Any], *, grouped: bool
) -> tuple[Batch, dict[str, torch.Tensor]]:
    """One batch of all rows, and the results of a float64 training step on it.

    Results are losses, gradients, buffers, and the scores afterwards.
    """
    data = {"root": str(root), "group_by_user": grouped} | sections.get("data", {})
    model = MAIL | sections.get("model", {})
    config = Config.model_validate(
        config_tree(
            root, **(sections | {"data": data, "model": model, "sharding": {"enabled": False}})
        )
    )
    source = Source(config.data.path("train"), config.schema_)
    encoders = fit_encoders(source, config.schema_, config.data.cold_start)
    assembled = assemble(config, encoders, CPU)
    reader = Reader(
        source, config.schema_, encoders, assembled.feature_tables, config.data,
        rank_info=RankInfo(), batch_size=source.num_rows, shuffle=False, seed=1,
        samplers=negative_samplers(config, encoders, assembled.feature_tables),
    )  # fmt: skip
    [batch] = reader
    batch.weights_B[-1] = 0  # a row that only fills up
    double = replace(
        batch,
        **{
            name: getattr(batch, name).double()
            for name in ("numeric_BN", "labels_B", "conversions_B", "weights_B")
        },
        vectors={name: vectors.double() for name, vectors in batch.vectors.items()},
    )
    trained = assembled.model.train()
    trained.towers.double()
    loss, outputs = trained(double)
    loss.backward()
    found = {
        f"gradient of {name}": value.grad
        for name, value in trained.named_parameters()
        if value.grad is not None
    }
    found |= {f"loss {name}": value for name, value in outputs.losses.items()}
    found |= {
        f"buffer {name}": value
        for name, value in trained.named_buffers()
        if value.is_floating_point()
    }
    scored = trained.eval()(double)[1]
    return batch, found | {"scores": scored.logits_B} | {
        f"scores of {name}": value for name, value in scored.tasks.items()
    }


def in_float64(*args: Any) -> Any:
    """Converts the looked-up vectors, which TorchRec's whole tables return in float32."""
    return map_tensors(
        feature_embeddings(*args), lambda part: part.double() if part.is_floating_point() else part
    )


@pytest.mark.parametrize("sections", MODELS.values(), ids=MODELS.keys())
def test_a_step_on_shared_users_is_the_step_on_rows(
    root: Path, sections: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mail_torchrec.model.mail.feature_embeddings", in_float64)
    apart, expected = step_of(root, sections, grouped=False)
    together, found = step_of(root, sections, grouped=True)
    assert apart.dedup is None and together.dedup is not None
    assert len(together.dedup.first_rows_U) == USERS < len(apart) / 2
    assert bool(apart.is_cold_B.any()) and not bool(apart.is_cold_B.all())
    assert found.keys() == expected.keys()
    assert any(name.startswith("gradient of pooled_tables") for name in found)
    for name, value in expected.items():
        bounds = {"rtol": 1e-5, "atol": 1e-8} if "tables" in name else {"rtol": 1e-8, "atol": 1e-11}
        torch.testing.assert_close(
            found[name], value, **bounds, msg=lambda text, name=name: f"{name}: {text}"
        )  # type: ignore[misc]
