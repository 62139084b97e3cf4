"""LLAE: its closed form is the minimum, recovers a planted map and depends on no scale."""

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.linalg import solve_sylvester as scipy_solve_sylvester
from torch import Tensor

from mail_torchrec.baselines.llae import LLAE, LLAESettings, low_rank_autoencoder, solve_sylvester
from mail_torchrec.towers.inputs import SequenceShape

P, Q, N = 9, 5, 60
Array = npt.NDArray[np.float64]


def data(seed: int = 0) -> tuple[Array, Array]:
    """Attributes S [P, N] and behaviours X [Q, N], which correlate."""
    random = np.random.default_rng(seed)
    S = random.normal(size=(P, N))
    return S, random.normal(size=(Q, P)) @ S / 3 + random.normal(size=(Q, N))


def solution(S: Array, X: Array, **options: Any) -> Array:
    chosen = {"weight": 7.0, "balance": 0.5, "rank": 2, "rounds": 0} | options
    products = (torch.from_numpy(product) for product in (S @ S.T, X @ X.T, S @ X.T))
    found: Array = low_rank_autoencoder(*products, **chosen).numpy()  # type: ignore[arg-type]
    return found


def objective(W: Array, S: Array, X: Array, V: Array, weight: float, balance: float) -> float:
    """The sums of the relaxed problem as they stand in the paper."""
    return float(
        ((X - W.T @ S) ** 2).sum()
        + balance * ((W @ X - S) ** 2).sum()
        + weight * np.trace(W.T @ V @ V.T @ W)
    )


def smallest_left_singular_vectors(W: Array, rank: int) -> Array:
    return np.linalg.svd(W, full_matrices=True)[0][:, rank:]


def definite(size: int, seed: int) -> Array:
    half = np.random.default_rng(seed).normal(size=(size, size))
    return half @ half.T


def test_the_sylvester_equation_is_solved_as_scipy_solves_it() -> None:
    A, B, C = definite(P, 1), definite(Q, 2), np.random.default_rng(3).normal(size=(P, Q))
    W = solve_sylvester(*(torch.from_numpy(matrix) for matrix in (A, B, C))).numpy()
    assert np.abs(A @ W + W @ B - C).max() < 1e-12 * np.abs(C).max() * 100
    np.testing.assert_allclose(W, scipy_solve_sylvester(A, B, C), rtol=1e-9)


def test_directions_without_data_are_zero_and_the_others_solved() -> None:
    """Two attributes and a behaviour that never differ from 0."""
    A, B, C = definite(P, 1), definite(Q, 2), np.random.default_rng(3).normal(size=(P, Q))
    A[:2], A[:, :2], B[:1], B[:, :1], C[:2], C[:, :1] = 0, 0, 0, 0, 0, 0
    W = solve_sylvester(*(torch.from_numpy(matrix) for matrix in (A, B, C))).numpy()
    assert np.isfinite(W).all() and np.abs(W[:2]).max() < 1e-12 and np.abs(W[:, 0]).max() < 1e-12
    np.testing.assert_allclose(
        W[2:, 1:], scipy_solve_sylvester(A[2:, 2:], B[1:, 1:], C[2:, 1:]), rtol=1e-8
    )


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_the_objective_has_no_slope_at_the_solution(rounds: int) -> None:
    S, X = data()
    W = solution(S, X, rounds=rounds)
    weight = 7.0 if rounds else 0.0
    V = (
        smallest_left_singular_vectors(solution(S, X, rounds=rounds - 1), 2)
        if rounds
        else np.eye(P)
    )
    step = 1e-4
    for p in range(P):
        for q in range(Q):
            ends = []
            for sign in (1, -1):
                moved = W.copy()
                moved[p, q] += sign * step
                ends.append(objective(moved, S, X, V, weight, 0.5))
            assert abs(ends[0] - ends[1]) / (2 * step) < 1e-6 * objective(W, S, X, V, weight, 0.5)
            assert min(ends) > objective(W, S, X, V, weight, 0.5)


def test_the_heavier_the_low_rank_term_the_less_is_left_of_the_other_singular_values() -> None:
    S, X = data()
    values = [
        np.linalg.svd(solution(S, X, weight=weight, rounds=5), compute_uv=False)
        for weight in (0.0, 10.0, 1e3, 1e9)
    ]
    rest = [value[2:].sum() / value[:2].sum() for value in values]
    assert rest[0] > rest[1] > 5 * rest[2] and rest[3] < 1e-6
    assert values[3][1] > 1e-2


# Within training: moving averages, standardised


def batch(num_rows: int, seed: int, scale: float = 1.0) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Warm users with two fields, a number and two sequences, all far from 0.

    Their pooled behaviours are a rank-2 map of the fields and the number.
    """
    random = torch.Generator().manual_seed(seed)
    fixed = torch.Generator().manual_seed(99)
    fields_NFD, numeric_NM = (
        3 + torch.randn(num_rows, 2, 3, generator=random),
        torch.randn(num_rows, 1, generator=random),
    )
    planted = torch.randn(7, 2, generator=fixed) @ torch.randn(2, 5, generator=fixed)
    pooled_NQ = 10 + torch.cat([fields_NFD.flatten(1), numeric_NM], dim=1) @ planted
    lengths_N = torch.full((num_rows,), 2)
    long, short = torch.zeros(num_rows, 4, 3), torch.zeros(num_rows, 2, 2)
    long[:, :2] = (pooled_NQ[:, :3] * 4 / 2).unsqueeze(1)  # pooled: the sum over T
    short[:, :2] = pooled_NQ[:, 3:].unsqueeze(1)
    return (
        fields_NFD * scale,
        numeric_NM,
        {"long": (long * scale, lengths_N), "short": (short, lengths_N)},
    )


def llae(**options: Any) -> LLAE:
    sequences = {"long": SequenceShape(4, 3, 0), "short": SequenceShape(2, 2, 0)}
    return LLAE(
        LLAESettings.model_validate({"name": "llae", "rank": 2, "solve_every": 3} | options),
        sequences,
        num_attributes=7,
    )


def pooled_by(made: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
    return torch.cat([values.sum(1) / values.shape[1] for values, _ in made.values()], dim=1)


def error(model: LLAE, scale: float = 1.0) -> float:
    """Mean squared error of predicted pooled behaviours, as a share of their variance."""
    fields_NFD, numeric_NM, behaviours = batch(200, seed=1000, scale=scale)
    wanted, found = (
        pooled_by(behaviours),
        pooled_by(model.virtual_behaviours(fields_NFD, numeric_NM)),
    )
    return float(((found - wanted).square().mean(0) / wanted.var(0)).mean())


def trained(model: LLAE, scale: float = 1.0, num_steps: int = 40) -> LLAE:
    for step in range(num_steps):
        model.update(*batch(50, seed=step, scale=scale))
    return model


def test_a_planted_low_rank_map_is_found() -> None:
    model = trained(llae(weight=0.01, balance=0.01))
    made = model.virtual_behaviours(*batch(5, seed=1000)[:2])
    assert error(model) < 0.01
    assert made["long"][1].tolist() == [2] * 5 and made["short"][1].tolist() == [2] * 5
    assert made["long"][0][:, 2:].abs().max() == 0 and torch.equal(
        made["long"][0][:, 0], made["long"][0][:, 1]
    )


def test_before_any_solution_and_without_anything_to_learn_from_the_mean_is_filled() -> None:
    model = llae()
    assert pooled_by(model.virtual_behaviours(*batch(3, seed=0)[:2])).abs().max() == 0
    fields_NFD, numeric_NM, behaviours = batch(50, seed=0)
    model.update(torch.ones_like(fields_NFD), torch.zeros_like(numeric_NM), behaviours)
    found = pooled_by(model.virtual_behaviours(fields_NFD, numeric_NM))
    torch.testing.assert_close(
        found, pooled_by(behaviours).mean(0).expand_as(found), rtol=1e-5, atol=1e-5
    )


def test_tables_that_grow_change_nothing_but_the_scale() -> None:
    assert error(trained(llae(), scale=100.0), scale=100.0) == pytest.approx(
        error(trained(llae())), rel=1e-3
    )


def test_the_weight_is_of_a_sum_over_all_rows() -> None:
    """Ten times the rows of a kind, ten times the weight: the same solution."""
    rows = batch(50, seed=0)
    few, many, other = (llae(weight=weight, rank=1, solve_every=1) for weight in (3.0, 30.0, 300.0))
    few.update(*rows)
    more = torch.arange(50).repeat(10)
    many.update(
        *(part[more] for part in rows[:2]),
        {name: (values[more], lengths[more]) for name, (values, lengths) in rows[2].items()},
    )
    torch.testing.assert_close(few.map_PQ, many.map_PQ)
    other.update(*rows)
    assert not torch.allclose(few.map_PQ, other.map_PQ, rtol=1e-2)


def test_the_equation_is_solved_every_so_many_steps_and_the_solution_is_saved() -> None:
    model = llae(solve_every=3)
    maps = []
    for step in range(5):
        model.update(*batch(50, seed=step))
        maps.append(model.map_PQ.clone())
    assert [not torch.equal(first, second) for first, second in pairwise(maps)] == [
        False,
        False,
        True,
        False,
    ]
    again = llae()
    again.load_state_dict(model.state_dict())
    rows = batch(7, seed=1000)[:2]
    assert torch.equal(
        pooled_by(again.virtual_behaviours(*rows)), pooled_by(model.virtual_behaviours(*rows))
    )


def test_a_step_without_warm_rows_changes_nothing_but_their_count() -> None:
    model = trained(llae(solve_every=1), num_steps=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.update(
        *(part[:0] for part in batch(5, seed=0)[:2]),
        {name: (v[:0], n[:0]) for name, (v, n) in batch(5, seed=0)[2].items()},
    )
    assert model.num_steps == before.pop("num_steps") + 1
    for name in before:
        value = model.state_dict()[name]
        torch.testing.assert_close(value, before[name], rtol=1e-12, atol=0)
