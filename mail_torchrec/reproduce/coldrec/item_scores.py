"""Scores of all items for some users, by an exported model."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mail_torchrec.inference.requests import USER_OF_CANDIDATE, Request
from mail_torchrec.inference.scorer import Scorer
from mail_torchrec.reproduce.coldrec.click_log import ClickLog
from mail_torchrec.reproduce.coldrec.split import Ints

Floats = npt.NDArray[np.float32]


def item_scores(model: Path, log: ClickLog, users: Ints) -> Floats:
    """Scores all items of a log for some of its users, [users, items].

    Args:
        model: exported model.
        log: users and items.
        users: rows of the users [users].
    """
    return np.stack(list(_scores_by_user(Scorer(model), log, users)))


def _scores_by_user(scorer: Scorer, log: ClickLog, users: Ints) -> Iterator[Floats]:
    """Encodes the items once, and every user with one of them."""
    candidates = log.items.to_pylist()
    rows = log.users.take(pa.array(users)).to_pylist()
    of_items = scorer.encode([Request(rows[0], candidates)])
    candidate_inputs = {
        spec.name: of_items[spec.name]
        for spec in scorer.manifest.inputs
        if spec.shape[0] == "candidates"
    }
    candidate_inputs[USER_OF_CANDIDATE] = np.zeros(len(candidates), np.int64)
    for row in rows:
        inputs = scorer.encode([Request(row, candidates[:1])]) | candidate_inputs
        yield scorer.run(inputs, ["pctr"])["pctr"]
