"""Writes a workload's rows in the format that FuxiCTR reads.

Ids are ours plus 1, for 0 is its padding; histories are padded in front, where its code looks for
the newest at the end.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mail_torchrec.config import Config
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.schema.schema import Kind, Schema
from mail_torchrec.towers.dmr import DMRSettings
from mail_torchrec.towers.registry import tower_settings
from mail_torchrec.train.assembly import config_feature_tables
from tools.benchmark.reference.padded_batch import PaddedBatch, pad_batch
from tools.benchmark.trainers import load_data

_NEGATIVE = "sampled_negative"


def write_fuxictr_rows(folder: Path, config: Config, encoders: Encoders, threads: int) -> int:
    """Writes rows, the description of their columns, and the model's options.

    Args:
        folder: an existing folder.
        config: columns, widths and data.
        encoders: fitted on the training rows.
        threads: of FuxiCTR.

    Returns:
        The number of training rows.
    """
    schema = config.schema_
    target, columns = _columns(schema)
    for training, name in ((True, "train.npz"), (False, "test.npz")):
        np.savez(folder / name, **_arrays(config, encoders, columns, training=training))
    features: list[dict[str, Any]] = [
        {name: _feature(schema, encoders, name, target)} for name in columns
    ]
    features += [{name: {"source": "", "type": "numeric"}} for name in schema.numeric()]
    features.append({_NEGATIVE: dict(features[0][target])})
    feature_map = {
        "dataset_id": "rows",
        "num_fields": len(features),
        "labels": ["label"],
        "features": features,
    }
    (folder / "feature_map.json").write_text(json.dumps(feature_map))
    options = _options(config, target) | {"threads": threads}
    (folder / "options.json").write_text(json.dumps(options))
    return len(np.load(folder / "train.npz")["label"])


def _columns(schema: Schema) -> tuple[str, list[str]]:
    """Returns the target column, and all id columns but the actions, the target first."""
    sequence = schema.sequences[0]
    target, actions = schema.target_of(sequence), schema.action_of(sequence)
    others = [name for name in schema.id_columns if name not in (target, actions)]
    return target, [target, *others]


def _feature(schema: Schema, encoders: Encoders, name: str, target: str) -> dict[str, Any]:
    """Describes an id column; behaviours share the target's embeddings."""
    feature: dict[str, Any] = {
        "source": "",
        "type": "categorical",
        "padding_idx": 0,
        "vocab_size": encoders.num_rows[schema.table_of(name)] + 1,
    }
    if schema.columns[name].kind is Kind.LIST:
        feature |= {"type": "sequence", "max_len": schema.columns[name].max_length}
        if name == schema.sequences[0]:
            feature["share_embedding"] = target
        else:
            feature["feature_encoder"] = "layers.MaskedAveragePooling()"
    return feature


def _options(config: Config, target: str) -> dict[str, Any]:
    settings = tower_settings("dmr", config.model.tower_options)
    assert isinstance(settings, DMRSettings)
    return {
        "model_id": "DMR",
        "embedding_dim": config.schema_.dim,
        "learning_rate": config.train.learning_rate,
        "optimizer": "adam",
        "loss": "binary_crossentropy",
        "batch_size": config.train.batch_size,
        "dnn_hidden_units": list(settings.hidden_dims),
        "dnn_activations": "PReLU",
        "batch_norm": True,
        "bn_only_once": True,
        "target_field": target,
        "sequence_field": config.schema_.sequences[0],
        "neg_seq_field": _NEGATIVE,
        "context_field": None,
        "enable_sum_pooling": True,
        "enable_u2i_rel": True,
        "enable_i2i_rel": True,
        "attention_hidden_units": list(settings.attention_dims),
        "attention_activation": "Sigmoid",
        "pos_emb_dim": settings.embedding_dim,
        "aux_loss_beta": settings.match_weight,
    }


def _arrays(
    config: Config, encoders: Encoders, columns: list[str], *, training: bool
) -> dict[str, Any]:
    """Reads all rows in the order of the files; behaviours are hidden as in our training."""
    schema = config.schema_
    batches = _read_batches(config, encoders, training=training)
    arrays: dict[str, Any] = {"label": _concatenate([rows.labels_B for rows in batches])}
    for name in columns:
        ids = _concatenate([rows.ids[name] for rows in batches]) + 1
        if name in schema.lists:
            ids = _pad_in_front(ids, _concatenate([rows.lengths[name] for rows in batches]))
        arrays[name] = ids
    numeric_RN = _concatenate([rows.numeric_BN for rows in batches])
    arrays |= {name: numeric_RN[:, column] for column, name in enumerate(schema.numeric())}
    num_items = encoders.num_rows[schema.table_of(schema.target_of(schema.sequences[0]))]
    random = np.random.default_rng(0)
    return arrays | {_NEGATIVE: random.integers(3, num_items + 1, len(arrays["label"]))}


def _read_batches(config: Config, encoders: Encoders, *, training: bool) -> list[PaddedBatch]:
    """Reads training or test rows as test rows: unshuffled and ungrouped."""
    part = config.data.train if training else config.data.test
    plain = {"test": part, "num_workers": 0, "group_by_user": False}
    unshuffled = config.model_copy(update={"data": config.data.model_copy(update=plain)})
    feature_tables = config_feature_tables(config)
    loader = load_data(unshuffled, encoders, training=False).loader
    return [pad_batch(batch, config.schema_, feature_tables) for batch in loader]


def _concatenate(parts: list[Tensor]) -> NDArray[Any]:
    array: NDArray[Any] = torch.cat(parts).numpy()
    return array


def _pad_in_front(ids_RT: NDArray[Any], lengths_R: NDArray[Any]) -> NDArray[Any]:
    """Moves the padding of lists from their end to their front."""
    length = ids_RT.shape[1]
    places_RT = np.arange(length) - (length - lengths_R[:, None])
    moved_RT = np.take_along_axis(ids_RT, places_RT.clip(min=0), axis=1)
    return np.where(places_RT >= 0, moved_RT, 0)
