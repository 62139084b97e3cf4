"""Prototypes of behaviours over ranks: as one process learns them, and a model with them trains."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from mail_torchrec.towers.zero_shot import prototypes
from mail_torchrec.towers.zero_shot.prototypes import BehaviourPrototypes
from tests.distributed.test_equal_ranks import PLANS, load, train_on_ranks
from tests.support.ranks import run_ranks
from tests.support.small_rows import config_tree, write_rows

pytestmark = pytest.mark.distributed

NUM_ROWS, NUM_POSITIONS, DIM, NUM_PROTOTYPES = 9, 4, 5, 3
# Rows of the first rank in each step: it has none in the third, and the second none in the last.
CUTS = [4, 7, 0, 9]


def behaviours(step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors, mask of real positions and weights of all ranks' rows in a step."""
    draw = torch.Generator().manual_seed(step)
    values = torch.randn(NUM_ROWS, NUM_POSITIONS, DIM, generator=draw, dtype=torch.float64)
    lengths = torch.randint(0, NUM_POSITIONS + 1, (NUM_ROWS, 1), generator=draw)
    weights = torch.randint(0, 3, (NUM_ROWS,), generator=draw).double()
    return values, torch.arange(NUM_POSITIONS) < lengths, weights


def learnt_by_rank(start: dict[str, Tensor] | None) -> list[dict[str, Tensor]]:
    """The state after each step of this rank's rows, from a state or from nothing."""
    torch.manual_seed(dist.get_rank())
    found = BehaviourPrototypes(NUM_PROTOTYPES, DIM, momentum=0.25).double()
    if start is not None:
        found.load_state_dict(start)
    states = []
    for step, cut in enumerate(CUTS):
        bounds = [0, NUM_ROWS] if dist.get_world_size() == 1 else [0, cut, NUM_ROWS]
        own = slice(*bounds[dist.get_rank() : dist.get_rank() + 2])
        values, mask, weights = behaviours(step)
        found.update(values[own], mask[own], weights[own])
        states.append({name: value.clone() for name, value in found.state_dict().items()})
    return states


def first_moments() -> dict[str, Any]:
    """What two ranks share out at random in their first step, each with draws of its own."""
    values, mask, weights = (tensor.numpy() for tensor in behaviours(0))
    counts, sums, square = np.zeros(NUM_PROTOTYPES), np.zeros((NUM_PROTOTYPES, DIM)), 0.0
    for rank, rows in enumerate((range(CUTS[0]), range(CUTS[0], NUM_ROWS))):
        torch.manual_seed(rank)
        num_behaviours = len(rows) * NUM_POSITIONS
        shares = torch.rand(num_behaviours, NUM_PROTOTYPES).double().numpy() ** num_behaviours
        places = [(row, position) for row in rows for position in range(NUM_POSITIONS)]
        for (row, position), drawn in zip(places, shares, strict=True):
            weighted = drawn * weights[row] * mask[row, position]
            counts, sums = counts + weighted, sums + np.outer(weighted, values[row, position])
            square += weighted.sum() * (values[row, position] ** 2).sum()
    total = counts.sum()
    return {"counts_K": counts / total, "sums_KD": sums / total, "square": square / total}


def test_ranks_learn_together_what_one_process_does(tmp_path: Path) -> None:
    both = run_ranks(2, learnt_by_rank, tmp_path / "first", None)
    first = both[0][0]
    for name, value in first_moments().items():  # a moving mean that begins at 0
        np.testing.assert_allclose(first[name].numpy(), 0.25 * value, rtol=1e-9, err_msg=name)
    [one] = run_ranks(1, learnt_by_rank, tmp_path / "1", first)
    two = run_ranks(2, learnt_by_rank, tmp_path / "2", first)
    for states in (both, two):
        assert all(states[0][step][name].equal(value) for step in range(len(CUTS))
                   for name, value in states[1][step].items())  # fmt: skip
    for step, expected in enumerate(one):
        for name, value in expected.items():
            torch.testing.assert_close(two[0][step][name], value, rtol=1e-9, atol=1e-12)
    assert (one[-1]["counts_K"] - first["counts_K"]).abs().min() > 1e-3


def shares_by_value(values_BD: Tensor, num_prototypes: int) -> Tensor:
    """In the place of random shares: a function of each behaviour, whichever rank has it."""
    slopes = torch.linspace(-1, 1, num_prototypes, dtype=values_BD.dtype)
    return torch.exp(4 * values_BD.sum(1, keepdim=True) * slopes)


def train_from_equal_shares(*args: Any) -> dict[str, Any]:
    prototypes._random_shares = shares_by_value  # this process ends with the training
    return train_on_ranks(*args)


def test_two_ranks_train_a_mixture_as_one_does(tmp_path: Path) -> None:
    write_rows(tmp_path / "train" / "a.parquet", 200, seed=1)
    model = config_tree(tmp_path)["model"]
    mixture = {"reconstruction_target": "mixture", "num_prototypes": 3, "ranking_weight": 0.5}
    mixture |= {"virtual_length": "predicted", "input_fields": "all_fields"}
    model |= {"zero_shot": model["zero_shot"] | mixture, "virtual_flag": True}
    model |= {"tower": "base_dnn", "tower_options": {"hidden_dims": [16, 8], "dropout": 0.0}}
    found = {}
    for world_size, plan in ((1, "table_wise"), (2, "row_wise")):
        folder = tmp_path / str(world_size)
        arguments = str(tmp_path), PLANS[plan], model, str(folder / "weights")
        results = run_ranks(world_size, train_from_equal_shares, folder, *arguments)
        found[world_size] = results, load(folder / "weights")
    ([one], expected), (two, weights) = found[1], found[2]
    for step, losses in enumerate(one["losses"]):
        for name, value in losses.items():
            mean = sum(result["losses"][step][name] for result in two) / 2
            assert mean == pytest.approx(value, rel=1e-4, abs=1e-6), (step, name)
    assert any("prototypes" in key and value.abs().max() > 0 for key, value in expected.items())
    for key, value in expected.items():
        torch.testing.assert_close(weights[key], value, rtol=1e-4, atol=1e-4, msg=key)
