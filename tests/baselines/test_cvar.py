"""CVAR: its losses and predictions in NumPy, and what each loss trains."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import Tensor

from mail_torchrec.baselines.cvar import CVAR, CVARSettings
from mail_torchrec.losses.wasserstein import gaussian_wasserstein
from mail_torchrec.towers.inputs import SequenceShape

SEQUENCES = {"long": SequenceShape(6, 3, 0), "short": SequenceShape(2, 4, 0)}
NUM_ROWS, F, D, M = 9, 2, 3, 1


def cvar(**options: Any) -> Any:
    settings = CVARSettings.model_validate({"name": "cvar", "latent_dim": 5, "noise": 0} | options)
    return with_random_parameters(CVAR(settings, SEQUENCES, F * D + M))


def with_random_parameters(model: Any) -> Any:
    """The model in float64, its parameters away from their initial values."""
    random = torch.Generator().manual_seed(0)
    for parameter in model.double().parameters():
        parameter.data.copy_(0.4 * torch.randn(parameter.shape, generator=random))
    return model


def warm(seed: int = 0, num_rows: int = NUM_ROWS) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Fields, numeric attributes and behaviours of warm users, garbage behind their lengths."""
    random = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=random, dtype=torch.float64)

    sequences = {
        name: (
            2 * normal(num_rows, shape.max_length, shape.dim) + 1,
            torch.randint(1, shape.max_length + 1, (num_rows,), generator=random),
        )
        for name, shape in SEQUENCES.items()
    }
    return normal(num_rows, F, D), 3 + normal(num_rows, M), sequences


class Reference:
    """One user after the other, with moments of the one batch that was seen."""

    def __init__(self, model: CVAR, weights: Any) -> None:
        self.p = {name: value.detach().numpy() for name, value in model.named_parameters()}
        fields, numeric, sequences = warm()
        self.attributes = np.concatenate([fields.flatten(1).numpy(), numeric.numpy()], axis=1)
        pooled = [[] for _ in range(NUM_ROWS)]  # type: ignore[var-annotated]
        self.shares = np.zeros((NUM_ROWS, 2))
        for s, (values, lengths) in enumerate(sequences.values()):
            for n in range(NUM_ROWS):
                number = int(lengths[n])
                pooled[n] += list(values[n, :number].numpy().sum(0) / values.shape[1])
                self.shares[n, s] = number / values.shape[1]
        self.pooled, self.weights = np.array(pooled), weights / weights.sum()

    def standardised(self, x: Any, of: Any) -> Any:
        mean = self.weights @ of
        return (x - mean) / np.sqrt(self.weights @ (of - mean) ** 2)

    def linear(self, name: str, x: Any) -> Any:
        return self.p[f"{name}.0.weight"] @ x + self.p[f"{name}.0.bias"]

    def losses(self, n: int) -> tuple[float, float]:
        target = self.standardised(self.pooled[n], self.pooled)
        encoded = self.linear("posterior", target)
        prior = self.linear("prior", self.standardised(self.attributes[n], self.attributes))
        decoded = self.linear("decoder", np.concatenate([encoded[:5], self.shares[n]]))
        means, deviations = encoded[:5] - prior[:5], np.exp(encoded[5:] / 2) - np.exp(prior[5:] / 2)
        return ((decoded - target) ** 2).mean(), means @ means + deviations @ deviations

    def prediction(self, n: int) -> Any:
        prior = self.linear("prior", self.standardised(self.attributes[n], self.attributes))
        shares = self.weights @ self.shares
        decoded = self.linear("decoder", np.concatenate([prior[:5], shares]))
        mean = self.weights @ self.pooled
        return mean + decoded * np.sqrt(self.weights @ (self.pooled - mean) ** 2)


def observed(**options: Any) -> tuple[CVAR, Reference]:
    """A model that has seen one batch of weighted users."""
    weights = torch.linspace(0.5, 2, NUM_ROWS, dtype=torch.float64)
    model = cvar(**options).train()
    model.update(*warm(), weights)
    return model, Reference(model, weights.numpy())


def test_losses_equal_the_reference() -> None:
    model, reference = observed(wasserstein_weight=0.3, reconstruction_weight=2.0)
    expected = np.array([reference.losses(n) for n in range(NUM_ROWS)])
    losses = model.losses(*warm())
    assert [(name, weight) for name, (_, weight) in losses.items()] == [("v", 2.0), ("d", 0.3)]
    for column, (found, _) in enumerate(losses.values()):
        np.testing.assert_allclose(found.detach().numpy(), expected[:, column], rtol=1e-7)


def test_cold_users_get_what_the_prior_decodes_with_the_mean_number_of_behaviours() -> None:
    model, reference = observed()
    fields, numeric, _ = warm()
    made = model.eval().virtual_behaviours(fields, numeric)
    shares = reference.weights @ reference.shares
    expected = np.stack([reference.prediction(n) for n in range(NUM_ROWS)])
    begin = 0
    for s, (name, shape) in enumerate(SEQUENCES.items()):
        values, lengths = made[name]
        number = round(shares[s] * shape.max_length)
        assert lengths.tolist() == [number] * NUM_ROWS
        pooled = values.detach().numpy().sum(1) / shape.max_length
        np.testing.assert_allclose(pooled, expected[:, begin : begin + shape.dim], rtol=1e-7)
        assert not values[:, number:].any()
        begin += shape.dim


def test_the_distance_is_that_of_gaussian_distributions_with_full_covariances() -> None:
    random = np.random.default_rng(0)
    m1, v1, m2, v2 = random.normal(size=(4, 6, 3))
    found = gaussian_wasserstein(*(torch.from_numpy(x) for x in (m1, v1, m2, v2)))
    for n in range(6):
        one, two = np.diag(np.exp(v1[n])), np.diag(np.exp(v2[n]))
        root = linalg.sqrtm(one)
        trace = np.trace(one + two - 2 * linalg.sqrtm(root @ two @ root))
        expected = ((m1[n] - m2[n]) ** 2).sum() + trace
        assert found[n].item() == pytest.approx(expected, rel=1e-8)


def test_codes_are_drawn_in_training_and_are_the_mean_in_evaluation() -> None:
    model, _ = observed(noise=0.5)
    fields, numeric, sequences = warm()
    drawn = [model.losses(fields, numeric, sequences)["v"][0] for _ in range(2)]
    assert not torch.equal(drawn[0], drawn[1])
    torch.manual_seed(0)
    found = model.losses(fields, numeric, sequences)["v"][0]
    torch.manual_seed(0)
    target = model.pooled_scale(model._pooled(sequences)[0])
    encoded = model.posterior(target)
    z = encoded[:, :5] + 0.5 * torch.exp(encoded[:, 5:]).sqrt() * torch.randn_like(encoded[:, :5])
    decoded = model.decoder(torch.cat([z, model._pooled(sequences)[1]], dim=1))
    torch.testing.assert_close(found, (decoded - target).square().mean(1))
    model.eval()
    twice = [model.virtual_behaviours(fields, numeric)["long"][0] for _ in range(2)]
    assert torch.equal(twice[0], twice[1])


@pytest.mark.parametrize(
    ("name", "trained"), [("v", {"posterior", "decoder"}), ("d", {"posterior", "prior"})]
)
def test_each_loss_trains_its_own_networks(name: str, trained: set[str]) -> None:
    model, _ = observed()
    model.losses(*warm())[name][0].sum().backward()
    moved = {
        parameter.partition(".")[0]
        for parameter, value in model.named_parameters()
        if value.grad is not None and value.grad.abs().sum() > 0
    }
    assert moved == trained


def test_in_evaluation_mode_it_learns_nothing() -> None:
    model, _ = observed()
    before = {name: value.clone() for name, value in model.eval().state_dict().items()}
    model.update(*warm(seed=1))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_losses_of_no_users_are_empty_and_give_zero_gradients() -> None:
    model, _ = observed(hidden_dims=[7, 6])
    losses = model.losses(*warm(num_rows=0))
    assert [loss.shape for loss, _ in losses.values()] == [(0,), (0,)]
    sum(loss.sum() for loss, _ in losses.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_training_brings_the_prior_to_the_posterior_and_recovers_behaviours() -> None:
    """Where attributes decide behaviours, cold users get nearly those."""
    torch.manual_seed(0)
    fields = torch.randn(200, F, D)
    numeric = torch.randn(200, M)
    mixed = torch.cat([fields.flatten(1), numeric], dim=1) @ torch.randn(7, 7)
    sequences = {
        "long": (mixed[:, None, :3].repeat(1, 6, 1), torch.full((200,), 6)),
        "short": (mixed[:, None, 3:].repeat(1, 2, 1), torch.full((200,), 2)),
    }
    settings = CVARSettings(name="cvar", latent_dim=8, wasserstein_weight=1.0)
    model = CVAR(settings, SEQUENCES, F * D + M)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(300):
        losses = model.losses(fields, numeric, sequences)
        optimizer.zero_grad()
        sum(weight * loss.mean() for loss, weight in losses.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
        model.update(fields, numeric, sequences)
    predicted = model.eval().virtual_behaviours(fields, numeric)["long"][0][:, 0]
    errors = (predicted - mixed[:, :3]).square().sum() / mixed[:, :3].square().sum()
    assert errors.item() < 0.1
