"""Replacement of the behaviours of cold users: by virtual ones, or by none.

Shape letters as in ``towers/inputs.py``; ``V`` the rows that get virtual behaviours.
"""

from dataclasses import replace

from torch import Tensor

from mail_torchrec.towers.inputs import RankingInputs
from mail_torchrec.towers.layers.behaviours import Behaviours
from mail_torchrec.towers.layers.sequences import BehaviourSequence


def with_virtual_behaviours(
    inputs: RankingInputs, rows_V: Tensor, virtual: dict[str, Behaviours]
) -> RankingInputs:
    """Returns the inputs with virtual behaviours in some rows (Feng et al. 2021, Eq. 10).

    Args:
        inputs: one row a user.
        rows_V: indices of the rows that get them (int64).
        virtual: sequence -> virtual behaviours [V, T, D] and their number [V].
    """
    sequences = {
        name: _with_virtual(sequence, rows_V, *virtual[name])
        for name, sequence in inputs.sequences.items()
    }
    return replace(inputs, sequences=sequences)


def _with_virtual(
    sequence: BehaviourSequence, rows_V: Tensor, values_VTD: Tensor, lengths_V: Tensor
) -> BehaviourSequence:
    values_VTD = values_VTD.to(sequence.values_BTD.dtype)
    lengths_V = lengths_V.to(sequence.lengths_B.dtype)
    return replace(
        sequence,
        values_BTD=sequence.values_BTD.index_copy(0, rows_V, values_VTD),
        lengths_B=sequence.lengths_B.index_copy(0, rows_V, lengths_V),
        actions_BT=sequence.actions_BT.index_fill(0, rows_V, 0),
        is_virtual_B=sequence.is_virtual_B.index_fill(0, rows_V, True),
    )


def without_behaviours(inputs: RankingInputs, removed_B: Tensor) -> RankingInputs:
    """Returns the inputs with empty behaviour sequences in some rows.

    Args:
        inputs: any rows.
        removed_B: True where the behaviours are removed (bool).
    """
    sequences = {
        name: replace(
            sequence,
            values_BTD=sequence.values_BTD.masked_fill(removed_B[:, None, None], 0.0),
            lengths_B=sequence.lengths_B.masked_fill(removed_B, 0),
            actions_BT=sequence.actions_BT.masked_fill(removed_B[:, None], 0),
        )
        for name, sequence in inputs.sequences.items()
    }
    return replace(inputs, sequences=sequences)
