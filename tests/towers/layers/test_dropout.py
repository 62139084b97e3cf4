"""Dropout drops the share that it says, each element for itself."""

import math

import pytest
import torch

from mail_torchrec.towers.layers.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(1000, 999), (3, 7, 40001)])
def test_each_element_is_dropped_for_itself_and_the_mean_stays(
    p: float, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    x = torch.ones(shape, requires_grad=True)
    found = Dropout(p)(x)
    is_kept = found > 0
    num = x.numel()
    bound = 5 * math.sqrt(p * (1 - p) / num)
    assert abs(is_kept.double().mean().item() - (1 - p)) < bound + 2**-16
    torch.testing.assert_close(
        found[is_kept], torch.full_like(found[is_kept], 1 / (1 - p)), rtol=2e-4, atol=0
    )
    flat = is_kept.flatten().double() - (1 - p)
    for apart in (1, 2, 3, 4, 5, 8, shape[-1]):  # four elements share a draw
        assert abs((flat[apart:] * flat[:-apart]).mean().item()) < bound, (
            f"elements {apart} apart depend on each other"
        )
    for place in range(4):  # of an element in its draw
        assert abs(flat[place::4].mean().item()) < 2 * bound + 2**-16
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert torch.equal(gradient, found.detach())


def test_draws_follow_the_seed_and_differ_from_step_to_step() -> None:
    x, layer = torch.ones(500), Dropout(0.5)
    torch.manual_seed(1)
    first, second = layer(x), layer(x)
    torch.manual_seed(1)
    assert torch.equal(layer(x), first) and not torch.equal(first, second)


def test_nothing_is_dropped_in_evaluation_or_without_a_share() -> None:
    x = torch.randn(5, 3)
    assert Dropout(0.5).eval()(x) is x and Dropout(0.0)(x) is x
    assert Dropout(0.5)(x[:0]).shape == (0, 3)
