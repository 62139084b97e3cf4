"""Scores by blocks in bfloat16 are those of whole tensors, forward and backward."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mail_torchrec.towers.layers import blocked_scores as module
from mail_torchrec.towers.layers import cpu_bfloat16
from mail_torchrec.towers.layers.blocked_scores import Gathered, blocked_scores
from mail_torchrec.towers.layers.cpu_bfloat16 import in_row_buckets, multiplies_in_bfloat16

DIM = 4


@pytest.fixture(autouse=True)
def units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_bfloat16, "has_bfloat16_units", lambda: True)


def scored(
    g: nn.Sequential, slopes_D: Tensor, behaviours: Gathered, queries: list[Gathered]
) -> Tensor:
    """The definition, with everything side by side."""
    e = behaviours.table_RD[behaviours.rows_N]
    query_ND = torch.stack([one.table_RD[one.rows_N] for one in queries]).sum(0)
    q = functional.prelu(query_ND, slopes_D)
    scores_N: Tensor = g(torch.cat([q, e, q - e, q * e], dim=1)).squeeze(1)
    return scores_N


def gradients(
    scores_N: Tensor, direction_N: Tensor, parameters: list[Tensor]
) -> tuple[Tensor, ...]:
    return torch.autograd.grad((scores_N.double() * direction_N).sum(), parameters)


@pytest.mark.parametrize("dims", [(), (6,), (6, 3)])
@pytest.mark.parametrize("num_queries", [1, 2])
@pytest.mark.parametrize("num", [0, 1, 8, 21])
def test_blocks_give_the_scores_and_gradients_of_whole_tensors(
    dims: tuple[int, ...], num_queries: int, num: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK", 8)
    torch.manual_seed(1)
    layers: list[nn.Module] = []
    for before, after in zip((4 * DIM, *dims), dims, strict=False):
        layers += [nn.Linear(before, after), nn.Sigmoid()]
    g = nn.Sequential(*layers, nn.Linear((4 * DIM, *dims)[-1], 1))
    slopes = nn.Parameter(torch.rand(DIM))
    tables = [torch.randn(rows, DIM, requires_grad=True) for rows in (15, 5, 2)[: 1 + num_queries]]
    parameters = [*g.parameters(), slopes, *tables]
    for parameter in parameters:  # what bfloat16 holds, so that only the work between rounds
        parameter.data = parameter.data.bfloat16().float()
    behaviours, *queries = (Gathered(one, torch.randint(len(one), (num,))) for one in tables)
    direction_N = 0.5 + torch.rand(num, dtype=torch.float64)  # sums do not cancel
    with torch.autocast("cpu", torch.bfloat16):
        assert multiplies_in_bfloat16(slopes)
        found_N = blocked_scores(g, slopes, behaviours, queries)
    found = found_N, *gradients(found_N, direction_N, parameters)
    expected_N = scored(g, slopes, behaviours, queries)
    expected = expected_N, *gradients(expected_N, direction_N, parameters)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape and one.dtype == torch.float32
        assert torch.linalg.norm(one - other) <= 2e-2 * torch.linalg.norm(other) + 5e-3


def test_other_products_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of float32, of evaluation, and of CPUs that emulate bfloat16."""
    assert not multiplies_in_bfloat16(torch.ones(1))
    with torch.autocast("cpu", torch.float16):
        assert not multiplies_in_bfloat16(torch.ones(1))
    monkeypatch.setattr(cpu_bfloat16, "has_bfloat16_units", lambda: False)
    with torch.autocast("cpu", torch.bfloat16):
        assert not multiplies_in_bfloat16(torch.ones(1))


@pytest.mark.parametrize("num", [0, 1, 64, 65])
def test_rows_that_fill_a_bucket_change_nothing(num: int) -> None:
    x = torch.randn(num, 3, 4, requires_grad=True)
    sizes = []

    def doubled(rows: Tensor) -> Tensor:
        sizes.append(len(rows))
        return 2 * rows + 1

    with torch.autocast("cpu", torch.bfloat16):
        found = in_row_buckets(doubled, x)
    assert in_row_buckets(doubled, x).equal(found) and found.equal(2 * x + 1)
    assert sizes == [{0: 0, 1: 64, 64: 64, 65: 128}[num], num]
    [gradient] = torch.autograd.grad(found.sum(), [x])
    assert gradient.equal(torch.full_like(x, 2))
