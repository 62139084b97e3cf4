"""Surplus users, indices and positions of shape buckets change no loss, gradient or score."""

from pathlib import Path

import pytest
import torch

from mail_torchrec.data.reading.shape_buckets import ShapeBuckets
from mail_torchrec.model.cold_rows import ColdUsers
from tests.model.test_deduplicated_users import MODELS, ZERO_SHOT, in_float64, root, step_of

__all__ = ["root"]
pytestmark = pytest.mark.usefixtures("single_process")
BUCKETS = {"data": {"shape_buckets": 2}}
CASES = MODELS | {
    "taught": {
        "model": {
            "virtual_flag": True,
            "mixing_strength": 2.0,
            "zero_shot": ZERO_SHOT | {"ranking_weight": 1.0, "virtual_length": "predicted"},
        }
    },
}
SHORT = {"mail-dmr", "standardised", "llae", "weighted", "taught", "din", "all fields"}


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in SHORT else pytest.mark.long) for name in CASES]
)
def test_a_step_with_buckets_is_the_step_without(
    root: Path, name: str, grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mail_torchrec.model.mail.feature_embeddings", in_float64)
    plain, expected = step_of(root, CASES[name], grouped=grouped)
    bucketed, found = step_of(root, CASES[name] | BUCKETS, grouped=grouped)
    assert len(bucketed.sets.warm) > len(plain.sets.warm)
    if grouped:
        assert bucketed.dedup is not None and bucketed.dedup.num_surplus > 0
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        bounds = {"rtol": 1e-5, "atol": 1e-8} if "tables" in key else {"rtol": 1e-8, "atol": 1e-11}
        torch.testing.assert_close(
            found[key], value, **bounds, msg=lambda text, key=key: f"{key}: {text}"
        )


def test_users_are_dropped_from_among_the_warm_ones() -> None:
    is_cold_U, buckets = torch.arange(400) % 4 == 0, ShapeBuckets(4)
    cold_V, warm_W = (
        buckets.fill_up(torch.nonzero(part).squeeze(1), 400) for part in (is_cold_U, ~is_cold_U)
    )
    cold = ColdUsers(is_cold_U, None, cold_V, 100, buckets)
    assert cold.readable_V[100:].tolist() == [399] * 12
    # 100 of the users have no rows, so one user may have 700.
    assert cold.with_dropped(warm_W, 0.5, 999, 100).max_rows == 999
    assert cold.with_dropped(warm_W, 1e-9, 999, 100).max_rows == 100, "those of the cold users"
    shares, sizes = [], set()
    for _ in range(50):
        dropped = cold.with_dropped(warm_W, 0.25, 400)
        assert dropped.dropped_U is not None
        rows = dropped.rows_V[dropped.rows_V < 400]
        assert torch.equal(rows.sort().values, torch.nonzero(dropped.is_filled_U).squeeze(1))
        assert not bool((dropped.dropped_U & is_cold_U).any())
        shares.append(float(dropped.dropped_U.sum()) / 300)
        sizes.add(len(dropped.rows_V))
    assert sum(shares) / 50 == pytest.approx(0.25, abs=0.02) and len(set(shares)) > 10
    assert sizes <= {len(cold_V) + size for size in (56, 64, 80, 96, 112)}
