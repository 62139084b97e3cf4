"""Reads the real and the virtual behaviours of test users from a finished run, one vector a user.

Shape letters: ``U`` users, ``D`` elements of all sequences' vectors, ``E`` elements of h_a; ``B``
rows of a batch.
"""

from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from mail_torchrec.config import load_run_config
from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.model.mail import Mail
from mail_torchrec.predict.opened_run import finished_config, open_run
from mail_torchrec.towers.layers.behaviours import mean_over_positions
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.utils.progress import progress_bar

# One process has whole tables; they are not trained, but some optimizers exist for sharded tables
# alone. A single reader process: rows come in the order of the files.
_OVERRIDES = ["data.num_workers=0", "sharding.enabled=false", "train.tables.name=sgd"]


@dataclass(frozen=True)
class UserVectors:
    """Real and virtual behaviours of users, one row each.

    Behaviours are summed over the T positions of a sequence and divided by T, sequences are
    concatenated.
    """

    users_U: NDArray[np.int64]
    """Hash of each user's group key."""
    is_new_U: NDArray[np.bool_]
    """Whether the user is reported as new."""
    has_real_U: NDArray[np.bool_]
    """Whether the files hold behaviours of this user, hidden or not."""
    real_UD: NDArray[np.float64]
    virtual_UD: NDArray[np.float64]
    attributes_UE: NDArray[np.float64]
    """h_a, the attributes as the zero-shot tower pools them."""

    def take(self, rows: NDArray[Any]) -> Self:
        """Selects users.

        Args:
            rows: row numbers, or a mask ``[U]``.
        """
        return type(self)(*(getattr(self, field.name)[rows] for field in fields(self)))

    @classmethod
    def concatenate(cls, parts: "list[UserVectors]") -> Self:
        """Concatenates the users of several parts."""
        return cls(
            *(
                np.concatenate([getattr(part, field.name) for part in parts])
                for field in fields(cls)
            )
        )


def collect_user_vectors(run_dir: RunDir, num_users: int) -> UserVectors:
    """Computes the vectors of ``num_users`` new and as many old users, each by its first test row.

    Users are chosen by the hash of their key.

    Raises:
        ValueError: there is no finished run.
    """
    run_dir.check_trained()
    overrides = _OVERRIDES
    if load_run_config(run_dir.path).data.cold_start.of_test.hide_share:
        # Hidden behaviours are given back to be compared.
        overrides = [*overrides, "data.cold_start.oracle=true"]
    with open_run(run_dir, None, finished_config(run_dir, overrides)) as run:
        model = run.assembled.model
        assert isinstance(model, Mail)
        model.eval()
        found: list[UserVectors] = []
        num_steps = len(run.data.reader)
        for batch in progress_bar(run.data.loader, total=num_steps, desc="behaviours", unit="step"):
            rows = _batch_vectors(model, batch.to(run.assembled.device))
            found = [_select_users(UserVectors.concatenate([*found, rows]), num_users)]
    return found[0]


def _batch_vectors(model: Mail, batch: Batch) -> UserVectors:
    """Computes the vectors of a batch's users, without its padding rows."""
    with torch.no_grad():
        tables = model.pooled_tables(batch.pooled), model.unpooled_tables(batch.unpooled)
        towers = model.towers
        assert towers.zero_shot is not None
        users = towers.user_inputs(batch, *tables)
        virtual = towers.virtual_behaviours(users)
        real = [(sequence.values_BTD, sequence.lengths_B) for sequence in users.sequences.values()]
        num_real_U = torch.stack([lengths_U for _, lengths_U in real]).sum(0)
        columns = [batch.per_user(batch.users_B), batch.per_user(batch.is_new_B), num_real_U > 0]
        vectors = [
            mean_over_positions(real).flatten(1),
            mean_over_positions([virtual[name] for name in users.sequences]).flatten(1),
            towers.zero_shot.pooled_fields(towers.zero_shot_fields(users)),
        ]
    rows = UserVectors(
        *(column.cpu().numpy() for column in columns),
        *(vector.double().cpu().numpy() for vector in vectors),
    )
    return rows.take(batch.weights_U.cpu().numpy() > 0)


def _select_users(rows: UserVectors, num_users: int) -> UserVectors:
    """Selects the first row of the ``num_users`` new and old users with the lowest hashes."""
    first = np.unique(rows.users_U, return_index=True)[1]
    is_new = rows.is_new_U[first]
    return rows.take(np.concatenate([first[is_new][:num_users], first[~is_new][:num_users]]))
