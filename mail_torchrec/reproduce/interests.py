"""What a trained zero-shot tower makes for test users, beside what they really did: one vector a user.

Shape letters: ``U`` users, ``D`` elements of all sequences' vectors, ``E`` elements of h_a; ``B``
rows of a batch.
"""

from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.model.mail import Mail
from mail_torchrec.towers.layers.behaviours import pooled
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import opened_run
from mail_torchrec.utils.logging import bar_interval

# What is hidden is read after all. One process has whole tables; nothing trains them, but some
# optimizers exist for sharded ones alone.
_OVERRIDES = ["data.cold_start.oracle=true", "sharding.enabled=false", "train.tables.name=sgd"]


@dataclass(frozen=True)
class Interests:
    """One row of each user. Behaviours are summed over the T positions of a sequence and divided by T, sequences side by side."""

    users_U: NDArray[np.int64]
    is_new_U: NDArray[np.bool_]
    has_real_U: NDArray[np.bool_]
    """Whether the files hold behaviours of this user, hidden or not."""
    real_UD: NDArray[np.float64]
    virtual_UD: NDArray[np.float64]
    attributes_UE: NDArray[np.float64]
    """h_a, the attributes as the zero-shot tower pools them."""

    def take(self, rows: NDArray[Any]) -> Self:
        """These users."""
        return type(self)(*(getattr(self, field.name)[rows] for field in fields(self)))

    @classmethod
    def concatenate(cls, parts: "list[Interests]") -> Self:
        """Users of several parts, one after another."""
        return cls(
            *(
                np.concatenate([getattr(part, field.name) for part in parts])
                for field in fields(cls)
            )
        )


def interests_of(run_dir: RunDir, num_users: int) -> Interests:
    """The vectors of the first test row of ``num_users`` new and as many old users, chosen by the hash of their key.

    Raises:
        ValueError: no finished run there.
    """
    with opened_run(run_dir, None, _OVERRIDES) as (assembled, test_data):
        model = assembled.model
        assert isinstance(model, Mail)
        model.eval()
        found: list[Interests] = []
        steps = len(test_data.reader)
        for batch in tqdm(
            test_data.loader,
            total=steps,
            desc="behaviours",
            unit="step",
            leave=False,
            mininterval=bar_interval(),
        ):
            found = [
                _chosen(
                    Interests.concatenate([*found, _rows(model, batch.to(assembled.device))]),
                    num_users,
                )
            ]
    return found[0]


def _rows(model: Mail, batch: Batch) -> Interests:
    with torch.no_grad():
        feature_tables = model.pooled_tables(batch.pooled), model.unpooled_tables(batch.unpooled)
        real, virtual, attributes_UE = model.towers.interests(batch, *feature_tables)
        num_real_U = torch.stack([lengths_U for _, lengths_U in real.values()]).sum(0)
        columns = [batch.of_users(batch.users_B), batch.of_users(batch.is_new_B), num_real_U > 0]
        vectors = [
            pooled(list(real.values())).flatten(1),
            pooled([virtual[name] for name in real]).flatten(1),
            attributes_UE,
        ]
    rows = Interests(
        *(column.cpu().numpy() for column in columns),
        *(vector.double().cpu().numpy() for vector in vectors),
    )
    return rows.take(batch.weights_U.cpu().numpy() > 0)


def _chosen(rows: Interests, num_users: int) -> Interests:
    """The first row of each user, of new and of old ones the ``num_users`` with the lowest hashes."""
    first = np.unique(rows.users_U, return_index=True)[1]
    is_new = rows.is_new_U[first]
    return rows.take(np.concatenate([first[is_new][:num_users], first[~is_new][:num_users]]))
