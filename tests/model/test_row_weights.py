"""A row's weight counts in every loss as that many equal rows would."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mail_torchrec.config import Config
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.data.reading.partition import RankInfo
from mail_torchrec.data.reading.reader import Reader
from mail_torchrec.data.source import Source
from mail_torchrec.train.assembly import assemble
from mail_torchrec.train.data_splits import negative_samplers
from tests.model.test_deduplicated_users import MAIL, SMALL_DMR, ZERO_SHOT, in_float64
from tests.support.small_rows import SCHEMA, baseline_tree, config_tree
from tests.support.weighted_rows import write_weighted_rows

pytestmark = pytest.mark.usefixtures("single_process")
WEIGHT = {"weight": {"group": "weight"}}
MODELS: dict[str, dict[str, Any]] = {
    "all losses": MAIL
    | {"multi_task": {}, "cold_loss_weight": 0.5, "tower_options": SMALL_DMR}
    | {"zero_shot": ZERO_SHOT | {"standardise_targets": True}},
    "sums": MAIL | {"zero_shot": ZERO_SHOT | {"alignment": "paired_mse", "reduction": "sum"}},
    "llae": baseline_tree("llae")["model"],
}


def step(
    root: Path, rows: pa.Table, model: dict[str, Any], columns: dict[str, Any], encoders: Any = None
) -> tuple[dict[str, torch.Tensor], Batch, Encoders]:
    """Losses, gradients and statistics of one float64 step on rows, and their batch."""
    path = root / "train" / "a.parquet"
    path.parent.mkdir(exist_ok=True)
    pq.write_table(rows, path)
    schema = SCHEMA | {"columns": SCHEMA["columns"] | columns}
    tree = config_tree(root, schema=schema, sharding={"enabled": False})
    config = Config.model_validate(tree | {"model": model})
    source = Source(config.data.path("train"), config.schema_)
    encoders = encoders or fit_encoders(source, config.schema_, config.data.cold_start)
    assembled = assemble(config, encoders, torch.device("cpu"))
    reader = Reader(
        source, config.schema_, encoders, assembled.feature_tables, config.data,
        rank_info=RankInfo(), batch_size=source.num_rows, shuffle=False, seed=1,
        samplers=negative_samplers(config, encoders, assembled.feature_tables),
    )  # fmt: skip
    [batch] = reader
    names = "numeric_BN", "labels_B", "conversions_B", "weights_B"
    batch = replace(batch, **{name: getattr(batch, name).double() for name in names})
    trained = assembled.model.train()
    trained.towers.double()
    for module in trained.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.eval()  # its statistics count rows
    loss, outputs = trained(batch)
    loss.backward()
    found = {f"loss {name}": value for name, value in outputs.losses.items()}
    found |= {name: p.grad for name, p in trained.named_parameters() if p.grad is not None}
    found |= {name: b for name, b in trained.named_buffers() if b.is_floating_point()}
    return found | {"loss": loss.detach()}, batch, encoders


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_a_step_on_weighted_rows_is_the_step_on_repeated_rows(
    tmp_path: Path, model: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mail_torchrec.model.mail.feature_embeddings", in_float64)
    rows = write_weighted_rows(tmp_path / "rows.parquet", 80, seed=4)
    twice = (2 * rows["weight"].to_numpy()).astype(np.int64)
    assert set(twice) == {0, 1, 2, 3, 4}
    repeated = rows.take(pa.array(np.repeat(np.arange(80), twice)))
    whole = rows.set_column(rows.column_names.index("weight"), "weight", pa.array(twice))
    weighted, batch, encoders = step(tmp_path, whole, model, WEIGHT)
    expected, *_ = step(tmp_path, repeated, model, {}, encoders)
    assert weighted.keys() == expected.keys()
    for name, value in expected.items():
        bounds = {"rtol": 2e-5, "atol": 1e-7} if "tables" in name else {"rtol": 1e-8, "atol": 1e-10}
        torch.testing.assert_close(
            weighted[name], value, **bounds, msg=lambda text, name=name: f"{name}: {text}"
        )  # type: ignore[misc]
    small = rows.set_column(
        rows.column_names.index("weight"), "weight", pa.array(twice / 1024)
    )  # a mean over rows does not depend on the unit of the weights
    if model is not MODELS["sums"]:
        of_small, *_ = step(tmp_path, small, model, WEIGHT, encoders)
        torch.testing.assert_close(of_small["loss"], weighted["loss"], rtol=1e-6, atol=1e-9)
    nothing = rows.set_column(rows.column_names.index("weight"), "weight", pa.array(0 * twice))
    of_nothing, batch, _ = step(tmp_path, nothing, model, WEIGHT, encoders)
    assert not batch.weights_B.any() and of_nothing["loss"] == 0
    assert all(bool(value.isfinite().all()) for value in of_nothing.values())
