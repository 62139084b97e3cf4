"""Prototypes of behaviours: their formulas, and virtual behaviours that consist of them."""

from typing import Any

import numpy as np
import pytest
import torch

from mail_torchrec.losses.reconstruction import share_loss
from mail_torchrec.towers.zero_shot.prototypes import BehaviourPrototypes
from mail_torchrec.towers.zero_shot.settings import ZeroShotSettings
from tests.support import reference
from tests.support.random_inputs import ready
from tests.towers.test_zero_shot import LENGTHS, NUM_FIELDS, SHAPES, TRAINED, rows, total, tower_of

MIXTURE: dict[str, Any] = {
    "reconstruction_target": "mixture",
    "num_prototypes": 3,
    "virtual_length": "predicted",
}


def responsibilities(vectors: Any, variance: float, values: Any) -> Any:
    """Posterior share of each prototype for one behaviour, K."""
    return reference.softmax(
        np.array([-((values - c) ** 2).sum() / (2 * variance) for c in vectors])
    )


def moments(p: Any, prefix: str) -> tuple[Any, float]:
    counts, sums = p[f"{prefix}.counts_K"], p[f"{prefix}.sums_KD"]
    vectors = sums / counts[:, None]
    unexplained = p[f"{prefix}.square"] - sum(
        counts[k] * (vectors[k] ** 2).sum() for k in range(len(counts))
    )
    return vectors, max(float(unexplained) / (counts.sum() * sums.shape[1]), 1e-12)


def test_an_update_is_a_step_of_expectation_maximisation() -> None:
    random = np.random.default_rng(0)
    found = BehaviourPrototypes(3, 4, momentum=0.25).double()
    values = torch.from_numpy(random.normal(size=(6, 5, 4)))
    mask = torch.arange(5) < torch.tensor([0, 1, 5, 3, 2, 4]).unsqueeze(1)
    weights = torch.tensor([1.0, 2.0, 1.0, 0.0, 1.0, 3.0], dtype=torch.float64)
    found.update(values, mask, weights)  # shares out at random
    before = {f"p.{name}": value.clone().numpy() for name, value in found.state_dict().items()}
    found.update(values, mask, weights)
    vectors, variance = moments(before, "p")
    counts, sums, square, all_weights = np.zeros(3), np.zeros((3, 4)), 0.0, 0.0
    for row, position in zip(*np.nonzero(mask.numpy()), strict=True):
        v, weight = values[row, position].numpy(), weights[row].item()
        shares = weight * responsibilities(vectors, variance, v)
        counts, sums = counts + shares, sums + np.outer(shares, v)
        square, all_weights = square + weight * (v**2).sum(), all_weights + weight
    for name, new in (("counts_K", counts), ("sums_KD", sums), ("square", square)):
        expected = 0.75 * before[f"p.{name}"] + 0.25 * new / all_weights
        np.testing.assert_allclose(found.state_dict()[name].numpy(), expected, rtol=1e-9)
    kept = {name: value.clone() for name, value in found.state_dict().items()}
    found.update(values[:0], mask[:0], weights[:0])
    found.eval().update(values, mask, weights)
    for name, value in found.state_dict().items():
        torch.testing.assert_close(value, kept[name], rtol=1e-12, atol=0)


def test_prototypes_find_the_groups_of_behaviours() -> None:
    torch.manual_seed(0)
    centres, found = 3 * torch.randn(4, 6), BehaviourPrototypes(12, 6)
    for _ in range(40):
        values = centres[torch.randint(4, (50, 7))] + 0.1 * torch.randn(50, 7, 6)
        found.update(values, torch.rand(50, 7) < 0.8, torch.ones(50))
    assert torch.cdist(centres, found.vectors_KD).min(1).values.max() < 0.1
    assert 0.005 < found.variance < 0.05  # 0.01, and what is left of the first steps


@pytest.mark.parametrize("switches", [{}, {"pooling": "concat", "standardise_targets": True}])
def test_losses_equal_the_formula(switches: dict[str, Any]) -> None:
    tower = tower_of(**MIXTURE, **switches)
    p = reference.parameters(ready(tower))
    if switches:  # A moment of its own before any row: standardised vectors are the vectors.
        for name in ("weight", "sum_D", "square_D"):
            tower.field_scale.get_buffer(name).zero_()
    fields, numeric, sequences = rows(5)
    losses = tower.losses(fields, numeric, sequences)
    for row in range(5):
        behaviours = [(values[row].numpy(), int(n[row])) for values, n in sequences.values()]
        codes = [
            (losses.a_N, reference.attribute_code(p, fields[row].numpy(), numeric[row].numpy())),
            (losses.v_N, reference.behaviour_code(p, behaviours)),
        ]
        for found, code in codes:
            assert found is not None
            decoded = reference.decoder(p, "field_decoders.0", code).reshape(NUM_FIELDS, -1)
            expected = reference.squared_error(decoded, fields[row].numpy(), None, "mean")
            logits = reference.decoder(p, "behaviour_decoder", code).reshape(2, 3)
            for index, (values, length) in enumerate(behaviours):
                moments_of = moments(p, f"prototypes.of_sequence.{index}")
                each = [responsibilities(*moments_of, v) for v in values[:length]]
                shares = sum(each, np.zeros(3)) / max(length, 1)
                predicted = reference.softmax(logits[index])
                ratios = [s * np.log(s / q) for s, q in zip(shares, predicted, strict=True) if s]
                expected += sum(ratios) / 2
            relative = np.array([[n / len(values)] for values, n in behaviours])
            lengths = reference.dense(p, "length_head", code)[:, None]
            expected += reference.squared_error(lengths, relative, None, "mean")
            assert found[row].item() == pytest.approx(expected, rel=1e-9)


def test_virtual_behaviours_are_prototypes_as_often_as_predicted() -> None:
    tower = tower_of(**MIXTURE)
    p = reference.parameters(ready(tower))
    fields, numeric, _ = rows(9)
    found = tower.virtual_behaviours(fields, numeric)
    pure = 0
    for row in range(9):
        code = reference.attribute_code(p, fields[row].numpy(), numeric[row].numpy())
        logits = reference.decoder(p, "behaviour_decoder", code).reshape(2, 3)
        relative = reference.dense(p, "length_head", code)
        for index, (values, lengths) in enumerate(found.values()):
            num = LENGTHS[index]
            length = min(max(round(float(relative[index]) * num), 1), num)
            vectors, _ = moments(p, f"prototypes.of_sequence.{index}")
            shares = reference.softmax(logits[index])
            # The mean of a fine grid of points on the line of shares.
            grid = (np.arange(length * 20_000) + 0.5) / (length * 20_000)
            owners = np.searchsorted(np.cumsum(shares), grid).clip(max=2)
            expected = vectors[owners].reshape(length, 20_000, -1).mean(1)
            assert lengths[row] == length
            np.testing.assert_allclose(values[row, :length].detach().numpy(), expected, atol=1e-3)
            mean = values[row, :length].mean(0).detach().numpy()
            np.testing.assert_allclose(mean, shares @ vectors, rtol=1e-9)
            assert values[row, length:].eq(0).all()
            pure += sum((abs(v - vectors).max(1) < 1e-9).any() for v in expected)
    assert pure > 0


@pytest.mark.parametrize("variant", TRAINED)
@pytest.mark.parametrize("num_rows", [0, 1, 3])
def test_every_parameter_gets_a_finite_gradient_with_any_number_of_rows(
    variant: str, num_rows: int
) -> None:
    tower = tower_of(variant=variant, **MIXTURE).double().train()
    loss = total(tower.losses(*rows(num_rows)))
    made = tower.virtual_behaviours(*rows(num_rows)[:2]).values()
    (loss + torch.stack([values.sum() for values, _ in made]).sum()).backward()
    for name, parameter in tower.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert num_rows or parameter.grad.eq(0).all(), name


def test_shares_that_are_met_cost_nothing() -> None:
    logits = torch.randn(2, 4, 2, 5, dtype=torch.float64)
    shares = torch.softmax(logits[0], dim=-1)
    shares[3] = 0
    found = share_loss(logits, shares)
    torch.testing.assert_close(found[0], torch.zeros(4, dtype=torch.float64))
    assert (found[1, :3] > 0).all() and found[1, 3] == 0


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"virtual_length": "full"}, r"says nothing of padding.*set virtual_length 'predicted'"),
        ({"padding": "masked"}, r"'mixture' has no positions to mask; set padding 'counted'"),
        ({"reduction": "sum"}, r"no elements to sum up; set reduction 'mean'"),
        (
            {"variant": "none", "virtual_length": "full"},
            r"no prototypes and no ranking loss; set reconstruction_target 'positions'",
        ),
    ],
    ids=str,
)
def test_switches_that_contradict_a_mixture_are_refused(
    switches: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ZeroShotSettings(**MIXTURE | switches)


def test_each_sequence_has_prototypes_of_its_own_that_standardising_leaves_alone() -> None:
    tower = tower_of(**MIXTURE, standardise_targets=True)
    names = {name for name in tower.state_dict() if "prototypes" in name or "scale" in name}
    per_sequence = {
        f"prototypes.of_sequence.{i}.{part}"
        for i in range(len(SHAPES))
        for part in ("counts_K", "sums_KD", "square")
    }
    scales = {f"field_scale.{part}" for part in ("weight", "sum_D", "square_D")}
    assert names == per_sequence | scales
