"""Steps after which an evaluation is due."""

import pytest

from mail_torchrec.validation.interval import EvaluationInterval


def due_steps(text: str, *, epochs: int, steps: int) -> list[int]:
    interval = EvaluationInterval.parse(text)
    return [
        epoch * steps + done
        for epoch in range(epochs)
        for done in range(1, steps + 1)
        if interval.is_due(epoch * steps + done, epoch, done, steps - done)
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4 steps", [4, 8, 12, 16, 20]),
        ("1 step", list(range(1, 21))),
        ("0.25 epochs", [3, 5, 8, 10, 13, 15, 18, 20]),
        ("1 epoch", [10, 20]),
        ("2 epochs", [20]),
        ("0.1 epochs", list(range(1, 21))),
        ("0.05 epochs", list(range(1, 21))),
        ("30 steps", []),
    ],
)
def test_an_evaluation_is_due_at_every_multiple(text: str, expected: list[int]) -> None:
    assert due_steps(text, epochs=2, steps=10) == expected


@pytest.mark.parametrize("text", ["4 steps", "0.3 epochs", "1.5 epochs", "100 steps"])
def test_the_steps_until_one_is_due_lead_to_it(text: str) -> None:
    interval, steps = EvaluationInterval.parse(text), 7
    due = due_steps(text, epochs=4, steps=steps)
    for step in range(4 * steps):
        epoch, done = divmod(step, steps)
        following = [other for other in due if step < other <= (epoch + 1) * steps]
        expected = following[0] - step if following else None
        assert interval.steps_until_due(step, epoch, done, steps - done) == expected


@pytest.mark.parametrize("text", ["0 steps", "0.5 steps", "10", "every epoch", "-1 epochs", ""])
def test_another_form_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"such as '500 steps' or '0.25 epochs', received"):
        EvaluationInterval.parse(text)
