"""Metrics of new and old items' rows, and by user and item, are those of these rows alone."""

import numpy as np
import pytest

from mail_torchrec.metrics.cohorts import EvaluatedRows, MetricsReport, compute_metrics
from mail_torchrec.reporting.cohorts import COHORTS, ITEM_COHORTS, USER_ITEM_COHORTS


def test_each_cohort_has_the_metrics_of_its_rows() -> None:
    random = np.random.default_rng(1)
    scores, labels = random.normal(size=400), (random.random(400) < 0.4).astype(np.int64)
    users, new = random.integers(0, 30, 400), random.random(400) < 0.3
    new_items = random.random(400) < 0.4
    rows = EvaluatedRows(scores, labels, users, new, is_new_item_R=new_items)
    found = MetricsReport.of(rows).cohorts
    assert tuple(found) == (*COHORTS, *ITEM_COHORTS, *USER_ITEM_COHORTS)
    plain = compute_metrics(scores, labels, users, new)
    assert {name: found[name] for name in COHORTS} == plain
    parts = {"new_items": new_items, "old_items": ~new_items}
    for user, is_user in (("new", new), ("old", ~new)):
        parts |= {f"{user}_users_{name}": is_user & parts[name] for name in ITEM_COHORTS}
    for name, kept in parts.items():
        alone = compute_metrics(scores[kept], labels[kept], users[kept], new[kept])["all"]
        assert found[name]["rows"] == kept.sum()
        for metric, value in alone.items():
            assert found[name][metric] == pytest.approx(value, rel=1e-12), (name, metric)
