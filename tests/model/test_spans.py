"""Named spans of the model's forward pass, in training and evaluation."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mail_torchrec.model.cold_rows import ColdUsers
from mail_torchrec.utils.spans import collect_spans
from tests.model.test_wall import whole

pytestmark = pytest.mark.usefixtures("single_process")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("switches", [{}, {"cold_loss_weight": 1.0, "new_user_tower": "own"}])
def test_a_forward_pass_opens_the_spans_of_lookup_zero_shot_and_ranking(
    small_root: Path, switches: dict[str, Any], training: bool
) -> None:
    model, batch = whole(small_root, **switches)
    with collect_spans() as seconds, torch.no_grad():
        model.train(training)(batch)
    assert set(seconds) == {"lookup", "communication", "zero_shot", "ranking"}
    assert all(second > 0 for second in seconds.values())


def test_the_exporters_functions_open_no_spans(small_root: Path) -> None:
    model, batch = whole(small_root)
    seen: list[Any] = []
    model.eval()
    model.towers.ranking.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    with torch.no_grad():
        model(batch)
        with collect_spans() as seconds:
            filled = model.towers.fill_cold_users(seen[0], ColdUsers(batch.is_cold_B))
            result = model.towers.rank(filled)
            model.towers.output_values(result, filled)
    assert not seconds
