"""Cost of a step, what forward passes keep for the backward pass, and how both grow with rows.

Shape letters: ``C`` numbers of a cost.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mail_torchrec.train.cost.operator_count import OperatorCounter


@dataclass(frozen=True)
class StepCost:
    """Cost of a step or of a part of one; sums and multiples are taken number by number."""

    kept_bytes: float = 0.0
    """Bytes kept for the backward pass."""
    flops: float = 0.0
    """Floating point operations, forward and backward."""
    written_bytes: float = 0.0
    """Bytes that the operators write, forward and backward."""

    def plus(self, other: "StepCost", times: float = 1.0) -> "StepCost":
        """Adds a multiple of another cost.

        Args:
            other: the other cost.
            times: its factor; -1 subtracts it.
        """
        return StepCost(
            self.kept_bytes + times * other.kept_bytes,
            self.flops + times * other.flops,
            self.written_bytes + times * other.written_bytes,
        )


@dataclass(frozen=True)
class QuadraticCost:
    """A cost that grows with the rows and with their pairs."""

    fixed: StepCost
    per_row: StepCost
    per_pair: StepCost
    """For each ordered pair of rows, own pairs included; 0 where no rows are compared."""

    @staticmethod
    def through(costs: Sequence[StepCost], spacing: int) -> "QuadraticCost":
        """Finds the cost of which four are given.

        It is exact where all four lie on one parabola. Others differ in more than their rows, by
        work of every other step for example, and the nearest line is taken: what looks like a
        square of few rows would be far too much of many.

        Args:
            costs: of ``spacing`` rows, and of twice, three and four times as many.
            spacing: number of rows.
        """
        costs_4C = np.array([astuple(cost) for cost in costs])
        slopes_3C = np.diff(costs_4C, axis=0) / spacing
        bends_2C = np.diff(slopes_3C, axis=0) / (2 * spacing)
        is_exact_C = np.isclose(bends_2C[0], bends_2C[1], rtol=1e-9, atol=0)
        per_pair_C = np.where(is_exact_C, bends_2C[0], 0.0)
        rows_4 = spacing * np.arange(1, 5)
        line_C = np.polyfit(rows_4, costs_4C, 1)[0]
        per_row_C = np.where(is_exact_C, slopes_3C[0] - 3 * spacing * per_pair_C, line_C)
        rest_4C = costs_4C - rows_4[:, None] * per_row_C - rows_4[:, None] ** 2 * per_pair_C
        fixed_C = np.where(is_exact_C, rest_4C[0], rest_4C.mean(0))
        fixed, per_row, per_pair = (
            StepCost(*found_C.tolist()) for found_C in (fixed_C, per_row_C, per_pair_C)
        )
        return QuadraticCost(fixed, per_row, per_pair)

    def at(self, rows: int) -> StepCost:
        """Returns the cost of so many rows."""
        return self.fixed.plus(self.per_row, rows).plus(self.per_pair, rows**2)


@contextmanager
def bytes_kept(constant: Iterable[Tensor]) -> Iterator[dict[int, int]]:
    """Notes what forward passes keep for the backward pass.

    Args:
        constant: tensors [...] that are there anyway, such as weights, and do not count.

    Yields:
        Address of a storage -> its bytes.
    """
    weights = {value.untyped_storage().data_ptr() for value in constant}
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        yield kept


def measure_cost(
    compute_loss: Callable[[], Tensor], constant: Iterable[Tensor] = ()
) -> tuple[StepCost, int]:
    """Measures a forward and a backward pass on a CPU.

    Args:
        compute_loss: the forward pass; returns a scalar.
        constant: tensors [...] that are kept anyway, such as weights.

    Returns:
        The cost, and the number of operators; views do not count.
    """
    counter: Any = FlopCounterMode(display=False)
    with OperatorCounter() as operators, counter:
        with bytes_kept(constant) as kept:
            loss = compute_loss()
        loss.backward()
    flops, written = counter.get_total_flops(), operators.written_bytes
    return StepCost(sum(kept.values()), flops, written), operators.operators
