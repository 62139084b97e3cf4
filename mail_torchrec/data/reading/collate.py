"""Rows of a window -> a batch: ids by key, those of a user's side once a user, the keys of the match loss, counts."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mail_torchrec.data.ids.vocabulary import UNKNOWN_ROW
from mail_torchrec.data.negatives import NegativeSampler
from mail_torchrec.data.parquet.arrow import Bools, Ints, JaggedArray
from mail_torchrec.data.reading.batch import Batch, DedupIndices, MatchIds
from mail_torchrec.data.reading.chunk import Chunk
from mail_torchrec.data.reading.dedup import USER_SIDE, alike_rows
from mail_torchrec.data.schema.feature_tables import FeatureTables
from mail_torchrec.data.schema.schema import Group, Schema

_Ids = dict[str, Ints | JaggedArray]
"""Key -> ids, one entry a user on the user's side and one a row elsewhere; an array where each
entry has one id."""


class BatchCollator:
    """Makes batches.

    Args:
        schema: columns.
        feature_tables: the keys to write.
        samplers: sequence -> sampler of its negatives; none outside training.
        group_by_user: rows that hold the same of one user share it.
    """

    def __init__(
        self,
        schema: Schema,
        feature_tables: FeatureTables,
        samplers: Mapping[str, NegativeSampler],
        *,
        group_by_user: bool,
    ) -> None:
        self._match, self._samplers, self._shares = feature_tables.match, samplers, group_by_user
        self._scalars, self._lists, self._conversion = (
            schema.scalars,
            schema.lists,
            schema.conversion,
        )
        self._targets = {sequence: schema.target_of(sequence) for sequence in feature_tables.match}
        self._pooled, self._unpooled = list(feature_tables.pooled), list(feature_tables.unpooled)
        self._of_users = (
            {*schema.names(*USER_SIDE), *(keys.last for keys in feature_tables.match.values())}
            if group_by_user
            else set()
        )
        self._numeric_of_users = len(schema.numeric(Group.ATTRIBUTE))  # the first ones
        self._scalars_of_users = [
            i for i, name in enumerate(self._scalars) if name in self._of_users
        ]
        self.count_names = [f"unknown/{name}" for name in self._scalars + self._lists] + [
            f"cut/{name}" for name in self._lists
        ]
        self.count_names += [f"unclicked/{schema.conversion}"] if schema.conversion else []
        self.count_names += (
            [f"distinct/{schema.group_key}", f"states/{schema.group_key}"] if group_by_user else []
        )

    def alike(self, window: Chunk) -> Ints:
        """Equal [R] for rows that are to share a user; each is alone where none are."""
        if not self._shares:
            return np.arange(len(window))
        arrays = [
            window.is_cold_R,
            window.numeric_RN[:, : self._numeric_of_users],
            *window.scalars_CR[self._scalars_of_users],
        ]
        return alike_rows(
            window.users_R,
            arrays,
            [window.lists[name] for name in self._lists if name in self._of_users],
        )

    def __call__(
        self,
        rows: Chunk,
        alike_R: Ints,
        is_real_R: Bools,
        random: Callable[[int], np.random.Generator],
    ) -> Batch:
        """One batch.

        Args:
            rows: of the batch.
            alike_R: of :meth:`alike`.
            is_real_R: False on rows that only fill it up.
            random: number of a stream (from 1) -> its generator.
        """
        shared = _users(alike_R) if self._shares else None
        ids = self._ids(rows, shared)
        counts = torch.from_numpy(self._counts(rows, is_real_R, shared, ids))
        match = {
            sequence: self._match_ids(len(rows), sequence, random(1 + i), ids)
            for i, sequence in enumerate(self._match)
        }
        return Batch(
            self._jagged(self._pooled, ids, len(rows), shared),
            self._jagged(self._unpooled, ids, len(rows), shared),
            torch.from_numpy(rows.numeric_RN),
            torch.from_numpy(rows.labels_R).float(),
            torch.from_numpy(rows.labels_R & rows.conversions_R).float(),
            torch.from_numpy(is_real_R).float(),
            torch.from_numpy(rows.users_R),
            torch.from_numpy(rows.is_cold_R),
            torch.from_numpy(rows.is_new_R),
            match,
            counts,
            DedupIndices(*map(torch.from_numpy, shared)) if shared else None,
        )

    def _ids(self, rows: Chunk, shared: tuple[Ints, Ints] | None) -> _Ids:
        ids: _Ids = dict(zip(self._scalars, rows.scalars_CR, strict=True)) | rows.lists
        if shared is not None:
            first_rows_U, _ = shared
            ids |= {
                self._scalars[i]: rows.scalars_CR[i, first_rows_U] for i in self._scalars_of_users
            }
            ids |= {
                name: ragged.take(first_rows_U)
                for name, ragged in rows.lists.items()
                if name in self._of_users
            }
        return ids

    def _match_ids(
        self, num_rows: int, sequence: str, random: np.random.Generator, ids: _Ids
    ) -> MatchIds:
        """Adds the keys of a sequence's match loss to ``ids``."""
        keys, behaviours, sampler = (
            self._match[sequence],
            ids[sequence],
            self._samplers.get(sequence),
        )
        assert isinstance(behaviours, JaggedArray)
        last_U = behaviours.last(0)
        negatives = sampler.sample(random) if sampler else np.zeros(0, dtype=np.int64)
        ids[keys.target], ids[keys.last] = ids[self._targets[sequence]], last_U
        ids[keys.negatives] = JaggedArray(
            negatives, np.diff(len(negatives) * np.arange(num_rows + 1) // num_rows)
        )
        log_q = [
            sampler.log_expected(rows) if sampler else np.zeros(len(rows), dtype=np.float32)
            for rows in (last_U, negatives)
        ]
        return MatchIds(*(torch.from_numpy(part) for part in (last_U, negatives, *log_q)))

    def _jagged(
        self, keys: list[str], ids: _Ids, num_rows: int, shared: tuple[Ints, Ints] | None
    ) -> KeyedJaggedTensor:
        lengths_KR, values = np.ones((len(keys), num_rows), dtype=np.int64), []
        for key, lengths_R in zip(keys, lengths_KR, strict=True):
            part = ids[key]
            if shared and key in self._of_users:
                lengths_R[:] = 0
                lengths_R[shared[0]] = part.lengths if isinstance(part, JaggedArray) else 1
            elif isinstance(part, JaggedArray):
                lengths_R[:] = part.lengths
            values.append(part.values if isinstance(part, JaggedArray) else part)
        return KeyedJaggedTensor(
            keys,
            torch.from_numpy(np.concatenate(values)),
            lengths=torch.from_numpy(lengths_KR.reshape(-1)),
        )

    def _counts(
        self, rows: Chunk, is_real_R: Bools, shared: tuple[Ints, Ints] | None, ids: _Ids
    ) -> Ints:
        """In the order of ``count_names``; of real rows."""
        weights_R = is_real_R.astype(np.int64)
        weights_U = (
            np.bincount(shared[1], weights=is_real_R, minlength=len(shared[0])).astype(np.int64)
            if shared
            else weights_R
        )
        counts = list((rows.scalars_CR == UNKNOWN_ROW) @ is_real_R.astype(np.float32))
        for name in self._lists:
            part = ids[name]
            assert isinstance(part, JaggedArray)
            counts.append(
                part.count(UNKNOWN_ROW) @ (weights_U if name in self._of_users else weights_R)
            )
        counts += list(weights_R @ rows.is_cut_RL)
        if self._conversion:
            counts.append(np.count_nonzero(rows.conversions_R & ~rows.labels_R & is_real_R))
        if shared:
            real_U = weights_U > 0
            counts += [len(np.unique(rows.users_R[shared[0][real_U]])), np.count_nonzero(real_U)]
        return np.array(counts, dtype=np.int64)


def _users(alike_R: Ints) -> tuple[Ints, Ints]:
    """The first row of each user, rising, and the place of each row's user among them."""
    rows_R = np.arange(len(alike_R))
    alike_R = alike_R - alike_R.min(initial=0)
    first_of_A = np.empty(alike_R.max(initial=-1) + 1, dtype=np.int64)
    first_of_A[alike_R[::-1]] = rows_R[::-1]  # of entries that are written twice the last one stays
    first_R = first_of_A[alike_R]
    is_first_R = first_R == rows_R
    return np.flatnonzero(is_first_R), (np.cumsum(is_first_R) - 1)[first_R]
