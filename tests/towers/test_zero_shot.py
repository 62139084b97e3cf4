"""Zero-shot tower: variants and switches equal their formulas and train all their parameters."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mail_torchrec.losses.mmd import mmd
from mail_torchrec.towers.inputs import SequenceShape
from mail_torchrec.towers.layers.behaviours import concat_sequences
from mail_torchrec.towers.zero_shot.losses import ZeroShotLosses, reconstruction_losses
from mail_torchrec.towers.zero_shot.settings import ZeroShotSettings
from mail_torchrec.towers.zero_shot.tower import ZeroShotTower
from tests.support import reference
from tests.support.random_inputs import ready

GROUPS = {"attributes": 3, "context": 1, "items": 2}
SHAPES = {"history": SequenceShape(5, 4, 3), "items": SequenceShape(3, 4, 0)}
LENGTHS = [5, 3]
NUM_FIELDS, FIELD_DIM, NUM_NUMERIC = 6, 3, 2
SMALL: dict[str, Any] = {"attention_dim": 5, "encoder_dims": (8, 7, 6), "decoder_dims": (7, 8)}
TRAINED = ["single", "dual", "full"]
TUNED = {"reconstruction_target": "pooled", "pooling": "concat", "standardise_targets": True}
Sequences = dict[str, tuple[Tensor, Tensor]]


def tower_of(**switches: Any) -> ZeroShotTower:
    settings = ZeroShotSettings(**SMALL, **switches)
    return ZeroShotTower(
        settings,
        group_fields=GROUPS,
        field_dim=FIELD_DIM,
        num_numeric=NUM_NUMERIC,
        sequences=SHAPES,
    )


def rows(num_rows: int, seed: int = 0) -> tuple[Tensor, Tensor, Sequences]:
    """Fields, numbers, behaviours; row 0 has none."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    sequences = {}
    for name, shape in SHAPES.items():
        lengths_N = torch.randint(shape.max_length + 1, (num_rows,), generator=generator)
        lengths_N[:1] = 0
        mask_NT = torch.arange(shape.max_length) < lengths_N.unsqueeze(1)
        sequences[name] = (
            normal(num_rows, shape.max_length, shape.dim) * mask_NT.unsqueeze(2),
            lengths_N,
        )
    return normal(num_rows, NUM_FIELDS, FIELD_DIM), normal(num_rows, NUM_NUMERIC), sequences


def total(losses: ZeroShotLosses) -> Tensor:
    parts = [row_losses.sum() for row_losses in losses.row_losses.values()]
    if losses.P_NH is not None and losses.Q_NH is not None:
        parts.append(mmd(losses.P_NH, losses.Q_NH, 1.0))
    return torch.stack(parts).sum()


@pytest.mark.parametrize("variant", TRAINED)
@pytest.mark.parametrize(
    ("decoders", "padding", "virtual_length", "reduction"),
    list(
        product(
            ["pair", "per_group"], ["counted", "masked"], ["full", "predicted"], ["mean", "sum"]
        )
    ),
)
def test_losses_equal_the_formula(
    variant: str, decoders: str, padding: str, virtual_length: str, reduction: str
) -> None:
    tower = tower_of(
        variant=variant,
        decoders=decoders,
        padding=padding,
        virtual_length=virtual_length,
        reduction=reduction,
    )
    p, settings = reference.parameters(ready(tower)), tower.settings
    fields, numeric, sequences = rows(4)
    losses = tower.losses(fields, numeric, sequences)
    groups = list(GROUPS.values()) if decoders == "per_group" else [NUM_FIELDS]
    assert losses.a_N is not None and losses.P_NH is not None
    for row in range(4):
        behaviours = [
            (values[row].numpy(), int(lengths[row])) for values, lengths in sequences.values()
        ]
        code = reference.attribute_code(p, fields[row].numpy(), numeric[row].numpy())
        np.testing.assert_allclose(losses.P_NH[row].detach().numpy(), code, rtol=1e-10)
        expected = reference.reconstruction(
            p, code, groups, fields[row].numpy(), behaviours, settings
        )
        assert losses.a_N[row].item() == pytest.approx(expected, rel=1e-10)
        if losses.v_N is not None and losses.Q_NH is not None:
            code = reference.behaviour_code(p, behaviours)
            np.testing.assert_allclose(losses.Q_NH[row].detach().numpy(), code, rtol=1e-10)
            expected = reference.reconstruction(
                p, code, groups, fields[row].numpy(), behaviours, settings
            )
            assert losses.v_N[row].item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("variant", TRAINED)
@pytest.mark.parametrize("pooling", ["attention", "concat"])
@pytest.mark.parametrize("virtual_length", ["full", "predicted"])
def test_losses_of_pooled_behaviours_equal_the_formula(
    variant: str, pooling: str, virtual_length: str
) -> None:
    tower = tower_of(
        variant=variant,
        reconstruction_target="pooled",
        pooling=pooling,
        virtual_length=virtual_length,
    )
    p = reference.parameters(ready(tower))
    fields, numeric, sequences = rows(4)
    losses = tower.losses(fields, numeric, sequences)
    for row in range(4):
        behaviours = [
            (values[row].numpy(), int(lengths[row])) for values, lengths in sequences.values()
        ]
        codes = [
            (losses.a_N, reference.attribute_code(p, fields[row].numpy(), numeric[row].numpy()))
        ]
        codes += (
            [(losses.v_N, reference.behaviour_code(p, behaviours))] if variant != "single" else []
        )
        for found, code in codes:
            assert found is not None
            expected = reference.reconstruction(
                p, code, [NUM_FIELDS], fields[row].numpy(), behaviours, tower.settings
            )
            assert found[row].item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    "switches",
    [{"reconstruction_target": "pooled"}, {"padding": "masked"}, {"padding": "counted"}],
    ids=str,
)
def test_standardised_losses_are_the_plain_ones_of_standardised_vectors(
    switches: dict[str, Any],
) -> None:
    scaled, plain = tower_of(standardise_targets=True, **switches), tower_of(**switches)
    ready(plain)
    scaled.double().load_state_dict(plain.state_dict(), strict=False)
    fields, numeric, sequences = rows(40)
    fields, sequences = (
        fields * 50 + 3,
        {name: (values * 1e-2, lengths) for name, (values, lengths) in sequences.items()},
    )
    scaled.eval()
    for scale in (scaled.field_scale, scaled.behaviour_scale):
        scale.train()  # or their moments would stay
    found = scaled.losses(fields, numeric, sequences)
    mean, deviation = fields.numpy().mean(0), fields.numpy().std(0)
    code = plain._encode_attributes(
        (fields - torch.from_numpy(mean)) / torch.from_numpy(deviation), numeric
    )
    torch.testing.assert_close(found.P_NH, code)
    behaviours = list(sequences.values())
    behaviour_target = plain._behaviour_target(
        behaviours, *concat_sequences(behaviours), torch.ones(40)
    )
    target, mask = behaviour_target.vectors_NVD, behaviour_target.mask_NV
    columns = (
        target.flatten(1).numpy()
        if "reconstruction_target" in switches
        else target.flatten(0, 1).numpy()
    )
    counted = columns[mask.flatten().numpy()] if mask is not None else columns
    flat = (columns - counted.mean(0)) / counted.std(0)
    scaled_fields = torch.from_numpy((fields.numpy() - mean) / deviation)
    targets = [
        behaviour_target._replace(vectors_NVD=torch.from_numpy(flat).view_as(target)),
        *plain._field_targets(scaled_fields, torch.ones(40)),
    ]
    torch.testing.assert_close(
        found.a_N, reconstruction_losses([code], targets, plain.settings.reduction)[0]
    )


def test_a_standardising_tower_gives_virtual_behaviours_in_the_scale_of_the_real_ones() -> None:
    torch.manual_seed(0)
    tower = tower_of(standardise_targets=True, reconstruction_target="pooled").double()
    fields, numeric, sequences = rows(200)
    sequences = {
        name: (values * 100 + 500, torch.full_like(lengths, values.shape[1]))
        for name, (values, lengths) in sequences.items()
    }
    tower.losses(fields, numeric, sequences)
    for values, _ in tower.eval().virtual_behaviours(fields, numeric).values():
        assert 450 < values.mean() < 550


@pytest.mark.parametrize(
    "switches",
    [
        {"variant": "none"},
        {"variant": "single"},
        {},
        {"virtual_length": "predicted"},
        {"variant": "single", "virtual_length": "predicted"},
        {"reconstruction_target": "pooled", "pooling": "concat"},
        {"reconstruction_target": "pooled", "virtual_length": "predicted"},
        {"reconstruction_target": "pooled", "variant": "none"},
    ],
    ids=str,
)
def test_virtual_behaviours_equal_the_formula(switches: dict[str, Any]) -> None:
    tower = tower_of(**switches)
    p = reference.parameters(ready(tower))
    fields, numeric, _ = rows(8)
    found = tower.virtual_behaviours(fields, numeric)
    for row in range(8):
        expected = reference.virtual(
            p, fields[row].numpy(), numeric[row].numpy(), LENGTHS, 4, tower.settings
        )
        for (values, lengths), (expected_values, expected_length) in zip(
            found.values(), expected, strict=True
        ):
            np.testing.assert_allclose(values[row].detach().numpy(), expected_values, rtol=1e-10)
            assert lengths[row] == expected_length and lengths.dtype == torch.int64


def test_predicted_lengths_are_clamped_to_one_and_the_longest() -> None:
    tower = tower_of(virtual_length="predicted")
    for bias, expected in ((-9.0, [1, 1]), (9.0, LENGTHS)):
        torch.nn.init.constant_(tower.length_head.bias, bias)
        torch.nn.init.zeros_(tower.length_head.weight)
        fields, numeric, _ = rows(2)
        found = tower.float().virtual_behaviours(fields.float(), numeric.float())
        assert [int(lengths[0]) for _, lengths in found.values()] == expected
        assert all(values[:, int(lengths[0]) :].eq(0).all() for values, lengths in found.values())


@pytest.mark.parametrize("variant", TRAINED)
@pytest.mark.parametrize(
    "switches",
    [{}, {"decoders": "per_group", "virtual_length": "predicted", "padding": "masked"}, TUNED],
    ids=str,
)
@pytest.mark.parametrize("num_rows", [0, 1, 3])
def test_every_parameter_gets_a_finite_gradient_with_any_number_of_rows(
    variant: str, switches: dict[str, Any], num_rows: int
) -> None:
    tower = tower_of(variant=variant, **switches).double().train()
    loss = total(tower.losses(*rows(num_rows)))
    loss.backward()
    assert loss.isfinite()
    for name, parameter in tower.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert num_rows or parameter.grad.eq(0).all(), name


@pytest.mark.parametrize(
    ("variant", "present"),
    [("none", set()), ("single", {"a_N", "P_NH"}), ("dual", {"a_N", "v_N", "P_NH", "Q_NH"})],
)
def test_a_variant_has_only_its_losses_and_modules(variant: str, present: set[str]) -> None:
    tower = tower_of(variant=variant).double()
    losses = tower.losses(*rows(2))
    assert {name for name, value in vars(losses).items() if value is not None} - {
        "weights_N"
    } == present
    assert set(losses.row_losses) == {name[0] for name in present if name in ("a_N", "v_N")}
    names = {name.split(".")[0] for name in tower.state_dict()}
    assert ("behaviour_encoder" in names) == (variant == "dual")
    assert (names == {"linear"}) == (variant == "none")


def test_nothing_can_train_variant_none() -> None:
    tower = tower_of(variant="none")
    assert not any(parameter.requires_grad for parameter in tower.parameters())


@pytest.mark.parametrize("garbage", [7.0, float("nan")])
def test_padding_never_changes_a_loss(garbage: float) -> None:
    tower = ready(tower_of())
    fields, numeric, sequences = rows(4)
    spoiled = {
        name: (
            values.masked_fill(
                torch.arange(values.shape[1]).unsqueeze(1) >= lengths[:, None, None], garbage
            ),
            lengths,
        )
        for name, (values, lengths) in sequences.items()
    }
    expected, found = (
        tower.losses(fields, numeric, sequences),
        tower.losses(fields, numeric, spoiled),
    )
    torch.testing.assert_close(
        [found.a_N, found.v_N, found.Q_NH], [expected.a_N, expected.v_N, expected.Q_NH]
    )


def test_rows_do_not_depend_on_their_order_nor_on_that_of_the_sequences() -> None:
    tower = ready(tower_of(virtual_length="predicted"))
    fields, numeric, sequences = rows(5)
    order = torch.tensor([3, 1, 4, 0, 2])
    moved = {
        name: (values[order], lengths[order])
        for name, (values, lengths) in reversed(sequences.items())
    }
    expected, found = (
        tower.losses(fields, numeric, sequences),
        tower.losses(fields[order], numeric[order], moved),
    )
    assert expected.a_N is not None and expected.v_N is not None
    torch.testing.assert_close([found.a_N, found.v_N], [expected.a_N[order], expected.v_N[order]])
    for name, (values, lengths) in tower.virtual_behaviours(fields[order], numeric[order]).items():
        torch.testing.assert_close(
            (values, lengths),
            tuple(part[order] for part in tower.virtual_behaviours(fields, numeric)[name]),
        )


def test_training_brings_virtual_behaviours_near_the_real_ones() -> None:
    torch.manual_seed(0)
    fields, numeric, sequences = rows(16)
    settings = ZeroShotSettings(
        dropout=0.0, attention_dim=16, encoder_dims=(64, 32, 32), decoder_dims=(32, 64)
    )
    tower = ZeroShotTower(
        settings,
        group_fields=GROUPS,
        field_dim=FIELD_DIM,
        num_numeric=NUM_NUMERIC,
        sequences=SHAPES,
    ).double()
    optimizer = torch.optim.Adam(tower.parameters(), 3e-3)

    def distance() -> float:
        found = tower.virtual_behaviours(fields, numeric)
        return float(
            sum(
                (found[name][0].detach() - values).square().mean()
                for name, (values, _) in sequences.items()
            )
        )

    before = distance()
    for _ in range(80):
        optimizer.zero_grad()
        total(tower.losses(fields, numeric, sequences)).backward()
        optimizer.step()
    assert distance() < 0.5 * before


def test_defaults_are_the_papers() -> None:
    settings = ZeroShotSettings()
    assert (settings.variant, settings.alignment, settings.sigma, settings.fill) == (
        "full",
        "mmd",
        1.0,
        "train_and_infer",
    )
    assert (settings.learning_rate_scale, settings.input_fields, settings.decoders) == (
        1.0,
        "user_attributes",
        "pair",
    )
    assert (settings.padding, settings.virtual_length, settings.reduction) == (
        "counted",
        "full",
        "mean",
    )
    assert (settings.dropout, settings.attention_dim) == (0.5, 128)
    assert (settings.encoder_dims, settings.decoder_dims) == ((1024, 512, 512), (512, 1024))


def test_sequences_of_different_dimension_are_refused() -> None:
    shapes = {"long": SequenceShape(5, 4, 0), "short": SequenceShape(5, 8, 0)}
    with pytest.raises(
        ValueError,
        match=(
            r"needs sequences of one dimension, received {'long': 4, 'short': 8}; "
            r"give their tables the same dim"
        ),
    ):
        ZeroShotTower(
            ZeroShotSettings(),
            group_fields={"attributes": 1},
            field_dim=4,
            num_numeric=0,
            sequences=shapes,
        )


def test_no_fields_or_no_behaviours_are_refused() -> None:
    with pytest.raises(
        ValueError,
        match=(
            r"should have a categorical field, received none; "
            r"add a column with group 'attribute'"
        ),
    ):
        ZeroShotTower(
            ZeroShotSettings(), group_fields={}, field_dim=4, num_numeric=1, sequences=SHAPES
        )
    with pytest.raises(
        ValueError,
        match=(
            r"should have behaviours to reconstruct, received none; "
            r"add a column with group 'behaviour'"
        ),
    ):
        ZeroShotTower(
            ZeroShotSettings(),
            group_fields={"attributes": 1},
            field_dim=4,
            num_numeric=0,
            sequences={},
        )


def test_switches_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(
        ValueError,
        match=(
            r"variant 'none' trains nothing, so it cannot standardise; "
            r"set standardise_targets false"
        ),
    ):
        ZeroShotSettings(variant="none", standardise_targets=True)
    with pytest.raises(
        ValueError,
        match=r"reconstruction_target 'pooled' has no positions to mask; set padding 'counted'",
    ):
        ZeroShotSettings(reconstruction_target="pooled", padding="masked")


def test_variant_none_cannot_predict_lengths() -> None:
    with pytest.raises(
        ValueError,
        match=(
            r"variant 'none' trains nothing, so it cannot predict lengths; "
            r"set virtual_length 'full'"
        ),
    ):
        ZeroShotSettings(variant="none", virtual_length="predicted")


def test_virtual_behaviours_feel_the_dropout_in_training_unless_told_not_to() -> None:
    fields, numeric, _ = rows(6)
    for virtual_dropout in (True, False):
        tower = ready(tower_of(virtual_dropout=virtual_dropout))
        expected = tower.virtual_behaviours(fields, numeric)["history"][0]
        assert (
            torch.equal(tower.train().virtual_behaviours(fields, numeric)["history"][0], expected)
            is not virtual_dropout
        )
