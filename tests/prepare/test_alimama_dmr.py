"""DMR on Alimama as its authors have it, against the formulas over the rows as they are stored."""

from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from mail_torchrec.config import load_config, preset_overrides
from mail_torchrec.data.schema.schema import Group
from mail_torchrec.prepare.pipeline import prepare
from mail_torchrec.prepare.settings import PrepareSettings
from tests.support import raw_logs, reference
from tests.support.whole_model import Array, WholeModel

LENGTH = 9


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> WholeModel:
    root = tmp_path_factory.mktemp("alimama")
    raw_logs.alimama(root / "raw")
    prepare("alimama", PrepareSettings(threads=1, history=LENGTH - 2), root / "raw", root / "out")
    overrides = [
        *preset_overrides("alimama_dmr"),
        f"schema.sequences.behaviours.max_length={LENGTH}",
        "sharding.enabled=false",
        "data.cold_start.hide_share=0",
    ]
    return WholeModel(load_config(root / "out" / "config.yaml", overrides), num_rows=20)


def behaviours(model: WholeModel, row: dict[str, Any]) -> dict[str, Any]:
    """The behaviours of a row: a category beside a brand, with V' over categories."""

    def joined(category: object, brand: object) -> Array:
        return np.concatenate([model.vector("cate_id", category), model.vector("brand", brand)])

    vectors = [joined(*pair) for pair in zip(row["cates"], row["brands"], strict=True)]
    return {
        "values": np.array(vectors).reshape(-1, 64),
        "length": len(vectors),
        "actions": [model.row("action", action) for action in row["actions"]],
        "target": joined(row["cate_id"], row["brand"]),
        "match": {"target": model.vector("cate_id", row["cate_id"], "cate_id_output")},
        "virtual": True,  # leaves out the match loss
    }


def test_its_logits_are_those_of_the_formulas(model: WholeModel) -> None:
    rows = pq.read_table(model.train_path).slice(0, len(model.batch)).to_pylist()
    parameters, schema = reference.parameters(model.towers.ranking), model.schema
    price = model.encoders.scales["price"]
    for row, logit in zip(rows, model.scored()[0], strict=True):
        groups = [
            np.array(
                [model.vector(schema.table_of(name), row[name]) for name in schema.fields(group)]
            )
            for group in (Group.ATTRIBUTE, Group.CONTEXT, Group.ITEM)
        ]
        numeric = np.array([(np.log1p(row["price"]) - price.mean) / price.deviation])
        expected, _ = reference.dmr(
            parameters, groups, numeric, [behaviours(model, row)], has_match=True
        )
        assert logit == pytest.approx(expected, abs=1e-4 * max(1, abs(expected)))


def test_its_behaviours_are_two_tables_wide_and_its_relevance_one(model: WholeModel) -> None:
    shape = model.towers.ranking.sequences["behaviours"]  # type: ignore[union-attr,index]
    assert (shape.dim, shape.match_dim, shape.num_actions) == (
        64,
        32,
        model.encoders.num_rows["action"],
    )
