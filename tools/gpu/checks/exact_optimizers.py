"""Updates of a table by each optimizer in float64, written from its definition.

Rows that no id of a batch names are left as they are, moments included, as FBGEMM's kernels do it.

Shape letters: ``R`` rows, ``D`` columns.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mail_torchrec.embeddings.settings import TableOptimizerSettings

Floats = NDArray[np.float64]


@dataclass
class ExactTable:
    """A table and its optimizer's state, in float64."""

    weights_RD: Floats
    optimizer: TableOptimizerSettings
    betas: tuple[float, float]
    _first_RD: Floats = field(init=False)
    _second_RD: Floats = field(init=False)
    _steps: int = 0

    def __post_init__(self) -> None:
        self._first_RD = np.zeros_like(self.weights_RD)
        # Optimizers that keep one number a row have it in all of its columns.
        self._second_RD = np.zeros_like(self.weights_RD)

    def update(self, gradients_RD: Floats, rows: NDArray[np.int64]) -> None:
        """Updates the rows that a batch named.

        Args:
            gradients_RD: gradient of each row, summed over the batch, ``[R, D]``.
            rows: the rows that were named, each once or several times, ``[N]``.
        """
        self._steps += 1
        rows = np.unique(rows)
        step = self._step(gradients_RD[rows], rows)
        decay = self.optimizer.weight_decay * self.weights_RD[rows]
        self.weights_RD[rows] -= self.optimizer.learning_rate * (step + decay)

    def _step(self, gradients: Floats, rows: NDArray[np.int64]) -> Floats:
        """Returns the step of the named rows before the learning rate, ``[N, D]``."""
        name, eps = self.optimizer.name, self.optimizer.eps
        if name == "sgd":
            return gradients
        squares = gradients**2
        if "rowwise" in name:
            squares = np.broadcast_to(squares.mean(1, keepdims=True), squares.shape)
        if "adagrad" in name:
            self._second_RD[rows] += squares
            return np.asarray(gradients / (np.sqrt(self._second_RD[rows]) + eps))
        first, second = self.betas
        self._first_RD[rows] += (1 - first) * (gradients - self._first_RD[rows])
        self._second_RD[rows] += (1 - second) * (squares - self._second_RD[rows])
        mean = self._first_RD[rows] / (1 - first**self._steps)
        spread = self._second_RD[rows] / (1 - second**self._steps)
        return np.asarray(mean / (np.sqrt(spread) + eps))
