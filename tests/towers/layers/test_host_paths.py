"""Faster paths on CPUs: PReLU, weighted sums and queries equal their definitions."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mail_torchrec.towers import dmr_networks
from mail_torchrec.towers.dmr_networks import BehaviourScores
from mail_torchrec.towers.inputs import SequenceShape
from mail_torchrec.towers.layers.attention import weighted_sum
from mail_torchrec.towers.layers.mlp import LastDimPReLU
from mail_torchrec.towers.layers.sequences import BehaviourSequence

NUM, LENGTH, DIM, ACTIONS = 5, 4, 3, 2


def prelu_of(num_slopes: int) -> LastDimPReLU:
    layer = LastDimPReLU(num_slopes)
    layer.double()
    layer.weight.data = torch.linspace(-0.5, 0.8, num_slopes, dtype=torch.float64)
    return layer


@pytest.mark.parametrize("shape", [(7, DIM), (2, 5, DIM), (0, DIM)])
def test_prelu_and_its_gradients_are_those_of_the_formula(shape: tuple[int, ...]) -> None:
    layer, random = prelu_of(DIM), np.random.default_rng(1)
    x, direction = random.normal(size=shape), random.normal(size=shape)
    if len(x):
        x.flat[0] = 0.0
    slopes = layer.weight.detach().numpy()
    inputs = torch.tensor(x, requires_grad=True)
    outputs = layer(inputs)
    outputs.backward(torch.tensor(direction))
    assert inputs.grad is not None and layer.weight.grad is not None
    np.testing.assert_allclose(outputs.detach(), np.where(x > 0, x, slopes * x))
    np.testing.assert_allclose(inputs.grad, direction * np.where(x > 0, 1.0, slopes))
    axes = tuple(range(len(shape) - 1))
    expected = (direction * np.where(x > 0, 0.0, x)).sum(axes)
    np.testing.assert_allclose(layer.weight.grad, expected, atol=1e-12)


def test_prelu_can_be_differentiated_twice() -> None:
    """As MetaEmb does."""
    layer = prelu_of(DIM)
    x = torch.randn(6, DIM, dtype=torch.float64, requires_grad=True)

    def activated(inputs: Tensor, slopes: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(layer, {"weight": slopes}, (inputs,))
        return found

    slopes = layer.weight.detach().requires_grad_()
    assert torch.autograd.gradcheck(activated, (x, slopes))
    assert torch.autograd.gradgradcheck(activated, (x, slopes))


def test_a_weighted_sum_is_the_sum_of_weights_times_vectors() -> None:
    random = np.random.default_rng(2)
    weights, values = random.normal(size=(NUM, LENGTH)), random.normal(size=(NUM, LENGTH, DIM))
    found = weighted_sum(torch.tensor(weights), torch.tensor(values))
    np.testing.assert_allclose(found, (weights[:, :, None] * values).sum(1))
    assert weighted_sum(torch.zeros(0, LENGTH), torch.zeros(0, LENGTH, DIM)).shape == (0, DIM)


@pytest.mark.parametrize("few", [0, 16])
def test_queries_are_the_dense_layer_on_place_and_action(
    few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether places and actions are looked up together or one after the other."""
    monkeypatch.setattr(dmr_networks, "_FEW_ACTIONS", few)
    torch.manual_seed(3)
    shape = SequenceShape(dim=DIM, max_length=LENGTH, num_actions=ACTIONS)
    scores = BehaviourScores(shape, (6,), 2, target_dim=0).double()
    lengths_B = torch.tensor([4, 0, 2])
    actions_BT = torch.randint(ACTIONS, (3, LENGTH))
    values_BTD = torch.randn(3, LENGTH, DIM, dtype=torch.float64)
    sequence = BehaviourSequence(
        values_BTD, lengths_B, actions_BT, values_BTD[:, 0], torch.zeros(3, dtype=torch.bool)
    )
    assert scores.action is not None
    found_BTD = scores._user_queries(sequence)
    direction_BTD = torch.randn_like(found_BTD)
    parameters = scores.position.weight, scores.action.weight, scores.query[0].weight
    gradients = torch.autograd.grad((found_BTD * direction_BTD).sum(), parameters)
    position, action, weight = (parameter.detach().numpy() for parameter in parameters)
    expected = np.zeros_like(found_BTD.detach().numpy())
    expected_gradients = [np.zeros_like(one) for one in (position, action, weight)]
    for row in range(3):
        for place in range(LENGTH):
            newest_first = max(int(lengths_B[row]) - 1 - place, 0)
            which = int(actions_BT[row, place])
            both = np.concatenate([position[newest_first], action[which]])
            expected[row, place] = weight @ both + scores.query[0].bias.detach().numpy()
            direction = direction_BTD[row, place].numpy()
            to_both = direction @ weight
            expected_gradients[0][newest_first] += to_both[:2]
            expected_gradients[1][which] += to_both[2:]
            expected_gradients[2] += np.outer(direction, both)
    np.testing.assert_allclose(found_BTD.detach(), expected)
    for found, one in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(found, one, atol=1e-12)
