"""Losses of new items' generators over ranks: as one process computes them, gradients too."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from mail_torchrec.model.features import FeatureEmbeddings
from mail_torchrec.model.loss import LossTerm, loss_shares
from mail_torchrec.model.virtual_items.generator import VirtualItemInputs
from mail_torchrec.model.virtual_items.settings import ItemContrastSettings
from mail_torchrec.model.virtual_items.terms import contrast_losses, identification_losses
from tests.distributed.test_equal_ranks import PLANS, load, train_on_ranks
from tests.support.ranks import run_ranks
from tests.support.small_rows import SCHEMA, config_tree, write_rows

pytestmark = pytest.mark.distributed

NUM_ROWS = 11


def losses_of_rank() -> dict[str, Any]:
    """Both losses of this rank's rows, and the gradient of their sum over all rows."""
    draw = torch.Generator().manual_seed(6)
    real, generated = torch.randn(2, NUM_ROWS, 5, generator=draw)
    ids = torch.randint(0, 6, (NUM_ROWS,), generator=draw)
    weights = (torch.arange(NUM_ROWS) % 4 > 0).float() * (1 + torch.arange(NUM_ROWS) % 2)
    # Within each part of the rows that two ranks have, so that both know their negatives.
    others = torch.cat([torch.randperm(4, generator=draw), 4 + torch.randperm(7, generator=draw)])
    bounds = [0, NUM_ROWS] if dist.get_world_size() == 1 else [0, 4, NUM_ROWS]
    own = slice(*bounds[dist.get_rank() : dist.get_rank() + 2])
    vectors = generated[own].clone().requires_grad_()
    empty = FeatureEmbeddings({}, {}, {})
    given = VirtualItemInputs(empty, vectors, real[own], torch.zeros(0), ids[own])
    rows, own_weights = others[own] - own.start, weights[own]
    terms = {
        "contrast": LossTerm(
            contrast_losses(given, own_weights > 0, ItemContrastSettings()), own_weights
        ),
        "identity": LossTerm(identification_losses(given, rows, own_weights), own_weights),
    }
    shares = loss_shares(terms)
    torch.stack(list(shares.values())).sum().backward()
    assert vectors.grad is not None
    return {
        "losses": {name: value.item() for name, value in shares.items()},
        "gradient": vectors.grad / dist.get_world_size(),  # ranks average their gradients
    }


def test_two_ranks_compute_what_one_does(tmp_path: Path) -> None:
    (one,) = run_ranks(1, losses_of_rank, tmp_path / "1")
    two = run_ranks(2, losses_of_rank, tmp_path / "2")
    for name, value in one["losses"].items():
        mean = sum(result["losses"][name] for result in two) / 2
        assert mean == pytest.approx(value, rel=1e-5), name
    gradient = torch.cat([result["gradient"] for result in two])
    torch.testing.assert_close(gradient, one["gradient"], rtol=1e-4, atol=1e-6)
    assert one["gradient"].abs().max() > 1e-3


def test_two_ranks_train_as_one_does(tmp_path: Path) -> None:
    write_rows(tmp_path / "train/a.parquet", 200, seed=1)
    fresh = {"fresh": {"group": "new_item", "column": "bought"}}
    schema = SCHEMA | {"columns": SCHEMA["columns"] | fresh}
    items = {"hidden_dims": [6], "contrast": {"temperature": 0.5}, "ranking_weight": 1.0}
    model = config_tree(tmp_path)["model"] | {"zero_shot": None, "virtual_items": items}
    found = {}
    for world_size, plan in ((1, "table_wise"), (2, "row_wise")):
        folder = tmp_path / str(world_size)
        arguments = str(tmp_path), PLANS[plan], model, str(folder / "weights"), None, schema
        results = run_ranks(world_size, train_on_ranks, folder, *arguments)
        found[world_size] = results, load(folder / "weights")
    (one,), expected = found[1]
    two, weights = found[2]
    for step, losses in enumerate(one["losses"]):
        assert {"L_item_contrast", "L_item_r", "L_virtual_item"} <= losses.keys()
        for name, value in losses.items():
            mean = sum(result["losses"][step][name] for result in two) / 2
            assert mean == pytest.approx(value, rel=1e-4, abs=1e-6), (step, name)
    for key, value in expected.items():
        torch.testing.assert_close(weights[key], value, rtol=1e-4, atol=1e-4, msg=key)
