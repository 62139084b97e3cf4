"""Targets of tasks that follow one another, and settings that make no sense."""

import math
from typing import Any

import pytest
import torch

from mail_torchrec.model.builders import ModelSettings
from mail_torchrec.towers.tasks.layout import task_targets
from tests.support.task_rows import MMOE, TASKS

NULL = math.nan


def test_a_row_counts_for_a_task_where_its_target_is_known() -> None:
    """A task is 0 where the one before it is, whether or not its own label is known."""
    settings = ModelSettings.model_validate({"tasks": TASKS})
    rows = [  # clicked, bought, paid, seconds -> targets by prediction
        ((1, 1, 1, 5), (1, 1, 1, 1, 1, 5, 5)),
        ((1, 1, NULL, 0), (1, 1, NULL, NULL, NULL, 0, NULL)),
        ((1, NULL, 1, NULL), (NULL, NULL, NULL, NULL, 1, NULL, NULL)),
        ((1, NULL, 0, 2), (NULL, NULL, NULL, 0, 0, 2, 2)),
        ((1, 0, 1, 2), (0, 0, NULL, 0, 1, 2, 2)),
        ((0, 1, 1, 3), (NULL, 0, NULL, 0, 1, 3, NULL)),
        ((0, NULL, NULL, NULL), (NULL, 0, NULL, 0, NULL, NULL, NULL)),
    ]
    labels = torch.tensor([row for row, _ in rows]).T
    columns = dict(zip(("bought_it", "paid", "seconds"), labels[1:], strict=True))
    found = task_targets(settings.tasks, labels[0], columns)
    assert list(found) == [
        *("buy_given_click", "buy", "pay_given_buy", "pay", "like", "watch", "stay")
    ]
    expected = torch.tensor([targets for _, targets in rows], dtype=torch.float32)
    torch.testing.assert_close(torch.stack(list(found.values()), 1), expected, equal_nan=True)


BUY = {"label": "bought_it", "after": "click"}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"tasks": {"buy": BUY | {"after": "pay"}}},
            r"tasks.buy.after .*\(click\), received 'pay'",
        ),
        (
            {"tasks": {"pay": {"label": "paid", "after": "buy"}, "buy": BUY}},
            r"tasks.pay.after .*received 'buy'; name one of them, or move",
        ),
        (
            {"tasks": {"watch": TASKS["watch"], "buy": BUY | {"after": "watch"}}},
            r"should be a binary task above it \(click\), received 'watch'",
        ),
        ({"tasks": {"ctr": BUY}}, r"tasks.ctr: a task's name should be .* and be none of"),
        ({"tasks": {"a b": BUY}}, "letters, digits and underscores"),
        (
            {"tasks": {"buy": BUY, "buy_given_click": {"label": "paid"}}},
            r"tasks.buy_given_click: another task predicts 'buy_given_click' too",
        ),
        ({"tasks": {"buy": BUY | {"scale": 2}}}, "scale is for numeric labels"),
        ({"tasks": {"click": {"label": "clicked", "hidden_dims": [3]}}}, "is for model.experts"),
        ({"tasks": {"click": {"label": "clicked", "after": "click"}}}, "is binary and comes first"),
        ({"experts": MMOE}, "there is the click alone"),
        ({"tasks": {"buy": BUY}, "multi_task": {}}, "two ways to say it"),
        ({"tasks": {"buy": BUY | {"type": "poisson"}}}, "weighted_logistic"),
    ],
    ids=str,
)
def test_tasks_that_make_no_sense_are_refused(model: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelSettings.model_validate(model)
