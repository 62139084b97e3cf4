"""Vectors as fields: forward and backward of a logistic regression, computed in NumPy."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from mail_torchrec.config import Config
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.reading.partition import RankInfo
from mail_torchrec.data.reading.reader import Reader
from mail_torchrec.data.source import Source
from mail_torchrec.optim.assignment import dense_parameters
from mail_torchrec.train.assembly import assemble
from tests.support.small_rows import config_tree, write_rows
from tests.support.vector_rows import VECTOR_DIMS, VECTORED, VECTORS, with_vectors


def standardised(values: list[list[float] | None]) -> np.ndarray:
    """Standardises each element; a null is a vector of zeros."""
    given = np.array([v for v in values if v is not None], np.float64)
    deviation = given.std(axis=0)
    mean, deviation = given.mean(axis=0), np.where(deviation > 1e-6, deviation, 1)
    zeros = np.zeros(given.shape[1])
    return np.array([zeros if v is None else (np.array(v) - mean) / deviation for v in values])


def test_each_vector_is_a_field_of_a_dense_layer(tmp_path: Path) -> None:
    path = tmp_path / "train" / "a.parquet"
    write_rows(path, 60, seed=1)
    pq.write_table(with_vectors(pq.read_table(path), seed=1), path)
    schema = VECTORED | {"dim": 1}
    sections = {"schema": schema, "sharding": {"enabled": False}}
    model = {"tower": "emblr", "zero_shot": None, "tower_options": {}}
    config = Config.model_validate(config_tree(tmp_path, **sections) | {"model": model})
    source = Source(str(path), config.schema_)
    encoders = fit_encoders(source, config.schema_, config.data.cold_start)
    assembled = assemble(config, encoders, torch.device("cpu"))
    reader = Reader(
        source, config.schema_, encoders, assembled.feature_tables, config.data,
        rank_info=RankInfo(), batch_size=60, shuffle=False, seed=0,
    )  # fmt: skip
    [batch] = reader
    loss, outputs = assembled.model(batch)
    loss.backward()

    layers = assembled.model.towers.vector_fields.layers
    trained = dense_parameters(assembled.model, None)["ranking"]
    assert {f"towers.vector_fields.layers.{name}_.weight" for name in VECTORS} <= trained.keys()
    with torch.no_grad():
        for layer in layers.values():
            layer.weight.zero_()
            layer.bias.zero_()
        without = assembled.model(batch)[1].logits_B.double().numpy()
    rows = pq.read_table(path)
    labels = rows["clicked"].to_numpy()
    error = (1 / (1 + np.exp(-outputs.logits_B.double().numpy())) - labels) / len(labels)
    torch.manual_seed(config.train.seed)
    fresh = assemble(config, encoders, torch.device("cpu")).model.towers.vector_fields.layers
    for name, dim in VECTOR_DIMS.items():
        x = standardised(rows[VECTORS[name].get("column", name)].to_pylist())
        layer, of_start = layers[f"{name}_"], fresh[f"{name}_"]
        assert layer.weight.shape == (1, dim)
        without += x @ of_start.weight.detach().double().numpy()[0] + of_start.bias.item()
        np.testing.assert_allclose(layer.weight.grad[0], error @ x, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(layer.bias.grad[0], error.sum(), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(outputs.logits_B, without, rtol=1e-4, atol=1e-5)
