"""Work on real positions alone is work on all of them, to rounding, forward and backward."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mail_torchrec.towers.inputs import RankingInputs, RankingOutput
from mail_torchrec.towers.layers.positions import PaddedPositions, RealPositions
from mail_torchrec.towers.layers.sequences import BehaviourSequence, DedupSequence
from tests.support.random_inputs import random_inputs, shapes
from tests.towers.test_ranking_towers import tower_of


def shared(inputs: RankingInputs) -> RankingInputs:
    """As many rows, of three of the users."""
    inverse_indices_B = torch.arange(len(inputs.numeric_BN)) % 3
    sequences = {
        name: DedupSequence.from_users(
            sequence, inverse_indices_B, sequence.target_BD, sequence.match
        )
        for name, sequence in inputs.sequences.items()
        if sequence.match is not None
    }
    return replace(
        inputs, sequences=dict(sequences), attributes_BAD=inputs.attributes_BAD[inverse_indices_B]
    )


def emptied(inputs: RankingInputs) -> RankingInputs:
    """Nobody has behaviours."""
    return replace(
        inputs,
        sequences={
            name: replace(part, lengths_B=part.lengths_B * 0)
            for name, part in inputs.sequences.items()
        },
    )


def step(name: str, of: Callable[[RankingInputs], RankingInputs]) -> list[Tensor]:
    tower, inputs = tower_of(name, shapes()).train(), random_inputs(shapes())
    values = [sequence.values_BTD.requires_grad_() for sequence in inputs.sequences.values()]
    returned = RankingOutput.wrap(tower(of(inputs)))
    loss = returned.logits_B.square().sum() + sum(
        losses_B.sum() for losses_B, _, _ in returned.auxiliary.values()
    )
    wanted = [*tower.parameters(), *values]
    gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
    return [
        returned.logits_B,
        *(
            torch.zeros_like(one) if found is None else found
            for one, found in zip(wanted, gradients, strict=True)
        ),
    ]


@pytest.mark.parametrize("name", ["dmr", "din"])
@pytest.mark.parametrize(
    "of", [lambda inputs: inputs, shared, emptied], ids=["rows", "shared", "empty"]
)
def test_real_positions_are_enough(
    name: str, of: Callable[[RankingInputs], RankingInputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = step(name, of)
    asked: list[int] = []

    def everywhere(sequence: object) -> PaddedPositions:
        asked.append(1)
        return PaddedPositions(sequence)  # type: ignore[arg-type]

    monkeypatch.setattr("mail_torchrec.towers.layers.attention.select_positions", everywhere)
    expected = step(name, of)
    assert asked
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_nothing_is_computed_for_padding() -> None:
    inputs = shared(random_inputs(shapes()))
    for sequence in inputs.sequences.values():
        positions = RealPositions(sequence)
        places = positions.gather_users(sequence.users.values_BTD)
        assert len(places) == int(sequence.lengths_B.sum()) < sequence.mask_BT.numel()
        assert torch.equal(places, sequence.values_BTD[sequence.mask_BT])
        assert torch.equal(
            positions.gather_rows(sequence.target_BD),
            sequence.target_BD.unsqueeze(1).expand_as(sequence.values_BTD)[sequence.mask_BT],
        )
        back_BT = positions.to_padded(places[:, 0])
        assert torch.equal(back_BT, sequence.values_BTD[..., 0] * sequence.mask_BT)


@pytest.mark.parametrize("surplus", [0, 3, 1000])
@pytest.mark.parametrize("name", ["dmr", "din"])
@pytest.mark.parametrize("of", [lambda inputs: inputs, shared, emptied], ids=["rows", "shared", ""])
def test_surplus_positions_change_nothing_forward_or_backward(
    name: str,
    of: Callable[[RankingInputs], RankingInputs],
    surplus: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected, sizes = step(name, of), []

    def bounded(sequence: BehaviourSequence) -> RealPositions:
        number = int(sequence.lengths_B.sum())
        positions = RealPositions(sequence, number + surplus)
        sizes.append(len(positions.gather_rows(sequence.target_BD)) - number)
        return positions

    monkeypatch.setattr("mail_torchrec.towers.layers.attention.select_positions", bounded)
    for one, other in zip(step(name, of), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert min(sizes) >= min(surplus, 1)  # at most as many as places, padding included
