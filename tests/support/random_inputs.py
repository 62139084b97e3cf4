"""Random inputs of ranking towers, and the same inputs as NumPy rows."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mail_torchrec.towers.inputs import InputShapes, RankingInputs, SequenceShape
from mail_torchrec.towers.layers.sequences import BehaviourSequence, MatchInputs

NUM_NEGATIVES = 6


def shapes(dim: int = 4, **changes: Any) -> InputShapes:
    """Two sequences of different lengths, one without actions; changes on top."""
    sequences = {"history": SequenceShape(5, dim, 3), "items": SequenceShape(3, dim, 0)}
    defaults = InputShapes(
        num_attributes=3,
        attribute_dim=dim,
        num_context=1,
        context_dim=dim,
        num_items=2,
        item_dim=dim,
        num_numeric=2,
        sequences=sequences,
        has_match=True,
    )
    return replace(defaults, **changes)


def random_inputs(shapes: InputShapes, num_rows: int = 7, seed: int = 0) -> RankingInputs:
    """Float64 inputs; row 0 has no behaviours, row 1 all of them, every third row is virtual."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    def whole(high: int, *size: int) -> Tensor:
        return torch.randint(high, size, generator=generator)

    def sequence(shape: SequenceShape) -> BehaviourSequence:
        lengths_B = whole(shape.max_length + 1, num_rows)
        lengths_B[:2] = torch.tensor([0, shape.max_length])[:num_rows]
        match_dim = shape.match_dim or shape.dim
        match = MatchInputs(
            target_BD=normal(num_rows, match_dim),
            last_UD=normal(num_rows, match_dim),
            negatives_KD=normal(NUM_NEGATIVES, match_dim),
            last_ids_U=whole(5, num_rows),
            negative_ids_K=whole(5, NUM_NEGATIVES),
            last_log_q_U=normal(num_rows),
            negative_log_q_K=normal(NUM_NEGATIVES),
        )
        mask_BT = torch.arange(shape.max_length) < lengths_B.unsqueeze(1)
        return BehaviourSequence(
            values_BTD=normal(num_rows, shape.max_length, shape.dim) * mask_BT.unsqueeze(2),
            lengths_B=lengths_B,
            actions_BT=whole(max(shape.num_actions, 1), num_rows, shape.max_length) * mask_BT,
            target_BD=normal(num_rows, shape.dim),
            is_virtual_B=torch.arange(num_rows) % 3 == 2,
            match=match if shapes.has_match else None,
        )

    return RankingInputs(
        attributes_BAD=normal(num_rows, shapes.num_attributes, shapes.attribute_dim),
        context_BCD=normal(num_rows, shapes.num_context, shapes.context_dim),
        items_BID=normal(num_rows, shapes.num_items, shapes.item_dim),
        numeric_BN=normal(num_rows, shapes.num_numeric),
        sequences={name: sequence(shape) for name, shape in shapes.sequences.items()},
        first_order_B=normal(num_rows),
    )


def numpy_row(inputs: RankingInputs, row: int) -> dict[str, Any]:
    """Converts one row for the reference, without first-order weights.

    Keys are ``groups`` (attributes, context, items), ``numeric`` and ``sequences``.
    """
    sequences = []
    for sequence in inputs.sequences.values():
        match = sequence.match
        sequences.append(
            {
                "values": sequence.values_BTD[row].numpy(),
                "length": int(sequence.lengths_B[row]),
                "actions": sequence.actions_BT[row].numpy(),
                "target": sequence.target_BD[row].numpy(),
                "virtual": bool(sequence.is_virtual_B[row]),
                "match": match
                and {
                    "target": match.target_BD[row].numpy(),
                    "last": match.last_UD[row].numpy(),
                    "negatives": match.negatives_KD.numpy(),
                    "last_id": int(match.last_ids_U[row]),
                    "negative_ids": match.negative_ids_K.numpy(),
                    "last_log_q": float(match.last_log_q_U[row]),
                    "negative_log_q": match.negative_log_q_K.numpy(),
                },
            }
        )
    groups = [
        group[row].numpy()
        for group in (inputs.attributes_BAD, inputs.context_BCD, inputs.items_BID)
    ]
    return {"groups": groups, "numeric": inputs.numeric_BN[row].numpy(), "sequences": sequences}


def rows_of(inputs: RankingInputs, rows: Tensor) -> RankingInputs:
    """Selects rows [R] of the inputs, in this order."""

    def taken(sequence: BehaviourSequence) -> BehaviourSequence:
        match = sequence.match
        return BehaviourSequence(
            sequence.values_BTD[rows],
            sequence.lengths_B[rows],
            sequence.actions_BT[rows],
            sequence.target_BD[rows],
            sequence.is_virtual_B[rows],
            match
            and replace(
                match,
                target_BD=match.target_BD[rows],
                last_UD=match.last_UD[rows],
                last_ids_U=match.last_ids_U[rows],
                last_log_q_U=match.last_log_q_U[rows],
            ),
        )

    sequences = {name: taken(sequence) for name, sequence in inputs.sequences.items()}
    groups = (inputs.attributes_BAD[rows], inputs.context_BCD[rows], inputs.items_BID[rows])
    assert inputs.first_order_B is not None
    return RankingInputs(*groups, inputs.numeric_BN[rows], sequences, inputs.first_order_B[rows])


def with_padding(inputs: RankingInputs, extra: int, garbage: float) -> RankingInputs:
    """Lengthens the sequences, with garbage in all positions behind the rows' lengths."""

    def padded(sequence: BehaviourSequence) -> BehaviourSequence:
        values_BTD = torch.nn.functional.pad(sequence.values_BTD, (0, 0, 0, extra))
        behind_BT = torch.arange(values_BTD.shape[1]) >= sequence.lengths_B.unsqueeze(1)
        actions_BT = torch.nn.functional.pad(sequence.actions_BT, (0, extra))
        return replace(
            sequence,
            values_BTD=values_BTD.masked_fill(behind_BT.unsqueeze(2), garbage),
            actions_BT=actions_BT,
        )

    return replace(
        inputs, sequences={name: padded(sequence) for name, sequence in inputs.sequences.items()}
    )


def ready(tower: nn.Module, seed: int = 0) -> nn.Module:
    """Returns the tower in float64 and evaluation mode.

    Parameters and batch statistics are random and away from their initial values.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, value in tower.double().state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
            is_positive = name.endswith(("running_var", "counts_K"))
            value.copy_(0.5 + noise.abs() if is_positive else 0.4 * noise)
    return tower.eval()
