"""Steps after which a run is evaluated: every so many steps, or every so many epochs."""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

_FORM = re.compile(r"(?P<number>\d+(?:\.\d+)?) (?P<unit>step|epoch)s?")


@dataclass(frozen=True)
class EvaluationInterval:
    """Interval between two evaluations; one is due after the last step of a run as well.

    An epoch of 10 steps, every ``0.25 epochs``: after steps 3, 5, 8 and 10.
    """

    length: Fraction
    is_epochs: bool
    """Whether the length counts epochs, not steps."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parses ``500 steps`` or ``0.25 epochs``.

        Raises:
            ValueError: another form, or nothing between two evaluations.
        """
        found = _FORM.fullmatch(text.strip())
        length = Fraction(found["number"]) if found else Fraction(0)
        is_epochs = bool(found) and found["unit"] == "epoch" if found else False
        if not length or not (is_epochs or length.denominator == 1):
            raise ValueError(
                "evaluate_every should be a number of steps or of epochs such as '500 steps' or "
                f"'0.25 epochs', received {text!r}"
            )
        return cls(length, is_epochs)

    def steps_until_due(self, step: int, epoch: int, done: int, left: int) -> int | None:
        """Counts the steps until an evaluation is due, at least 1.

        Args:
            step: steps of the run that are done.
            epoch: number of the epoch, from 0.
            done: steps of this epoch that are done.
            left: steps of this epoch that are left.

        Returns:
            None where none is due in this epoch any more.
        """
        if not self.is_epochs:
            steps = int(self.length) - step % int(self.length)
        else:
            total = done + left
            # In units of 1/total epochs; the next multiple of the length, rounded up to a step.
            passed = epoch * total + done
            following = (passed // (self.length * total) + 1) * self.length * total
            steps = -(-following.numerator // following.denominator) - passed
        return steps if steps <= left else None

    def is_due(self, step: int, epoch: int, done: int, left: int) -> bool:
        """Returns whether an evaluation is due now; arguments as :meth:`steps_until_due`."""
        if not done:
            return False
        return self.steps_until_due(step - 1, epoch, done - 1, left + 1) == 1
