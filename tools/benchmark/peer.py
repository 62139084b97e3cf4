"""FuxiCTR's DMR on the same rows: another project's, in an environment of its own, an epoch of theirs and one of ours in turn.

What theirs cannot take stays away from it: actions (its context fields do not run in 2.3.10). Its
match loss and its item-to-item relevance are switched on, its sizes are ours, and its in-memory npz
loader is the fastest of those it has.
"""

import json
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mail_torchrec.config import Config
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.schema.schema import Kind
from mail_torchrec.towers.dmr import DMRSettings
from mail_torchrec.towers.registry import tower_settings
from mail_torchrec.train.assembly import feature_tables_of
from tools.benchmark.growth import Say
from tools.benchmark.padded import padded
from tools.benchmark.setting import DMR, Setting
from tools.benchmark.sides import Trainer, loaded

NAME, VERSION = "FuxiCTR", "2.3.10"
_PACKAGES = [f"fuxictr=={VERSION}", "polars<2"]
_MODEL = Path("model_zoo/DMR/src/DMR.py")
_NEGATIVE = "sampled_negative"
_WARM_UP = 3


def check_source(source: Path | None) -> Path:
    """The checkout.

    Raises:
        ValueError: there is none, or without DMR; how to get it.
    """
    if source is None or not (source / _MODEL).exists():
        raise ValueError(
            "--peer fuxictr needs FuxiCTR's DMR, which its wheel does not hold: --peer-source "
            "should be a checkout of its repository at "
            f"version {VERSION} with {_MODEL}, received {source}; git clone "
            "https://github.com/reczoo/FuxiCTR"
        )
    return source


def environment(folder: Path) -> Path:
    """The Python of an environment with FuxiCTR, made where there is none; torch and what else both need is that of this one."""
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True, clear=True)
        [site] = folder.glob("lib/python*/site-packages")
        (site / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
        subprocess.run([python, "-m", "pip", "install", "--quiet", *_PACKAGES], check=True)
        (folder / "ready").touch()
    return python


def beside_peer(
    setting: Setting, encoders: Encoders, source: Path, cache: Path, *, repeats: int, threads: int, say: Say
) -> dict[str, Any]:  # fmt: skip
    """An epoch of each, again and again, each time with another seed: rows a second behind the first steps, and AUC."""
    python = environment(cache)
    found: dict[str, Any] = {
        side: {"rows_per_second": [], "auc": []} for side in ("ours", "theirs")
    }
    with tempfile.TemporaryDirectory() as folder:
        rows = write_peer_rows(Path(folder), setting.config(DMR), encoders, threads)
        for seed in range(1, repeats + 1):
            command = [
                str(python),
                str(Path(__file__).with_name("peer_run.py")),
                folder,
                str(source.resolve()),
                str(seed),
            ]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            theirs = json.loads(done.stdout.strip().splitlines()[-1])
            ours = _epoch(
                Setting(setting.path, (*setting.overrides, f"train.seed={seed}")), encoders
            )
            for side, result in (("ours", ours), ("theirs", theirs)):
                found[side]["rows_per_second"].append(result["rows_per_second"])
                found[side]["auc"].append(result["auc"])
            say(f"{NAME} {theirs['rows_per_second']:,.0f} rows/s, AUC {theirs['auc']:.4f}; "
                f"here {ours['rows_per_second']:,.0f} rows/s, AUC {ours['auc']:.4f}")  # fmt: skip
    return found | {
        "name": f"{NAME} {VERSION}",
        "rows": rows,
        "threads": threads,
        "python": sys.version.split()[0],
    }


def _epoch(setting: Setting, encoders: Encoders) -> dict[str, float]:
    side = Trainer(setting, DMR, torch.device("cpu"), encoders)
    rows, start = 0, time.perf_counter()
    for step, more in enumerate(side.epoch(0), start=1):
        rows += more
        if step == _WARM_UP:
            rows, start = 0, time.perf_counter()
    seconds = time.perf_counter() - start
    return {"rows_per_second": rows / seconds, "auc": side.auc()}


def write_peer_rows(folder: Path, config: Config, encoders: Encoders, threads: int) -> int:
    """Writes the rows as FuxiCTR reads them, what it should know of their columns, and the model's options; the training rows.

    Ids are ours plus 1, for 0 is its padding; histories are padded in front, where its code looks
    for the newest at the end.
    """
    schema = config.schema_
    sequence = schema.sequences[0]
    target, dropped = schema.target_of(sequence), schema.action_of(sequence)
    columns = [
        name
        for name in [target, *(name for name in schema.id_columns if name != target)]
        if name != dropped
    ]
    for part in (True, False):
        np.savez(
            folder / ("train.npz" if part else "test.npz"),
            **_arrays(config, encoders, columns, training=part),
        )
    features: list[dict[str, Any]] = []
    for name in columns:
        spec = {
            "source": "",
            "type": "categorical",
            "padding_idx": 0,
            "vocab_size": encoders.num_rows[schema.table_of(name)] + 1,
        }
        if schema.columns[name].kind is Kind.LIST:
            spec |= {"type": "sequence", "max_len": schema.columns[name].max_length}
            spec |= (
                {"share_embedding": target}
                if name == sequence
                else {"feature_encoder": "layers.MaskedAveragePooling()"}
            )
        features.append({name: spec})
    features += [{name: {"source": "", "type": "numeric"}} for name in schema.numeric()]
    features.append({_NEGATIVE: dict(features[0][target])})
    feature_map = {
        "dataset_id": "rows",
        "num_fields": len(features),
        "labels": ["label"],
        "features": features,
    }
    (folder / "feature_map.json").write_text(json.dumps(feature_map))
    (folder / "options.json").write_text(
        json.dumps(_options(config, sequence, target) | {"threads": threads})
    )
    return len(np.load(folder / "train.npz")["label"])


def _options(config: Config, sequence: str, target: str) -> dict[str, Any]:
    settings = tower_settings("dmr", config.model.tower_options)
    assert isinstance(settings, DMRSettings)
    return {
        "model_id": "DMR", "embedding_dim": config.schema_.dim, "learning_rate": config.train.learning_rate, "optimizer": "adam",
        "loss": "binary_crossentropy", "batch_size": config.train.batch_size, "dnn_hidden_units": list(settings.hidden_dims),
        "dnn_activations": "PReLU", "batch_norm": True, "bn_only_once": True, "target_field": target, "sequence_field": sequence,
        "neg_seq_field": _NEGATIVE, "context_field": None, "enable_sum_pooling": True, "enable_u2i_rel": True, "enable_i2i_rel": True,
        "attention_hidden_units": list(settings.attention_dims), "attention_activation": "Sigmoid", "pos_emb_dim": settings.embedding_dim,
        "aux_loss_beta": settings.match_weight,
    }  # fmt: skip


def _arrays(
    config: Config, encoders: Encoders, columns: list[str], *, training: bool
) -> dict[str, Any]:
    """All rows of a part, in the order of the files; behaviours hidden as they are from us."""
    part = config.data.train if training else config.data.test
    plain = config.model_copy(
        update={
            "data": config.data.model_copy(
                update={"test": part, "num_workers": 0, "group_by_user": False}
            )
        }
    )
    schema, feature_tables = config.schema_, feature_tables_of(config)
    batches = [
        padded(batch, schema, feature_tables)
        for batch in loaded(plain, encoders, training=False).loader
    ]
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {"label": torch.cat([rows.labels_B for rows in batches]).numpy()}
    for name in columns:
        ids = torch.cat([rows.ids[name] for rows in batches]).numpy() + 1
        if name in schema.lists:
            lengths_R1 = torch.cat([rows.lengths[name] for rows in batches]).numpy()[:, None]
            order_T = np.arange(ids.shape[1])
            places_RT = order_T - (ids.shape[1] - lengths_R1)
            ids = np.where(
                places_RT >= 0, np.take_along_axis(ids, places_RT.clip(min=0), axis=1), 0
            )
        arrays[name] = ids
    numeric_RN = torch.cat([rows.numeric_BN for rows in batches]).numpy()
    arrays |= {name: numeric_RN[:, column] for column, name in enumerate(schema.numeric())}
    item_rows = encoders.num_rows[schema.table_of(schema.target_of(schema.sequences[0]))]
    return arrays | {_NEGATIVE: random.integers(3, item_rows + 1, len(arrays["label"]))}
