"""Golden behaviours: vectors of sampled users beside an exported model, and how they compare.

Shape letters: ``N`` new users, ``M`` old users, ``D`` elements; ``U`` users of another sample.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mail_torchrec.drift.mmd import mean_discrepancy, median_distance
from mail_torchrec.drift.two_sample import MIN_VECTORS, constant_elements, two_sample_auc
from mail_torchrec.settings import Settings
from mail_torchrec.utils.safe_paths import PlainPath, open_regular

GOLDEN_BEHAVIOURS = "golden_behaviours.float32"
"""Name of their file: raw float32, new users' virtual, old users' virtual, old users' real ones."""
GOLDEN_SETS = ("new_virtual", "old_virtual", "old_real")
"""Names of the three sets, in the order of the file."""
MAX_USERS = 5000
"""Most users of each kind; two sets of so many take 400 MB while they are compared."""
MIN_USERS = 2 * MIN_VECTORS
"""Fewest users of each kind: halves of the old ones are compared."""
_MAX_DIM = 65_536
_ELEMENT = np.dtype("<f4")

Floats = NDArray[np.float32]


class TwoSampleInfo(Settings):
    """Comparison of two sets of vectors, and the number of vectors that it rests on."""

    auc: float = Field(ge=0, le=1)
    """Two-sample AUC: .5 where the sets are of one distribution, 1 where they do not overlap."""
    mmd: float
    """Squared MMD, unbiased: about 0 where they are of one distribution."""
    mmd_noise: float
    """Squared MMD that chance exceeds in a twentieth of all cases were they of one."""
    rows: tuple[int, int]
    """Number of vectors in either set."""


class DriftInfo(Settings):
    """Golden behaviours of an exported model, as its manifest holds them."""

    file: PlainPath = GOLDEN_BEHAVIOURS
    dim: int = Field(ge=1, le=_MAX_DIM)
    """Elements of a vector: behaviours are meaned over positions, sequences concatenated."""
    new_users: int = Field(ge=MIN_VECTORS, le=MAX_USERS)
    """Users with virtual behaviours."""
    old_users: int = Field(ge=MIN_USERS, le=MAX_USERS)
    """Users with virtual behaviours, made as if they were new, and with their real ones."""
    bandwidth: float = Field(gt=0)
    """Bandwidth of the MMD's kernel: the median distance of two virtual behaviours."""
    real_bandwidth: float = Field(gt=0)
    """The same of real and virtual ones of old users."""
    virtual_and_real: TwoSampleInfo
    """Virtual behaviours of one half of the old users, and real ones of the other half."""
    new_and_old: TwoSampleInfo
    """Virtual behaviours of new and of old users."""

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return (self.new_users + 2 * self.old_users) * self.dim * _ELEMENT.itemsize

    def lines(self) -> list[str]:
        """Says in words how far virtual behaviours lie from real ones, and new users from old."""
        pairs = {
            "old users, virtual against real": self.virtual_and_real,
            "virtual, new users against old": self.new_and_old,
        }
        return [
            f"{name}: two-sample AUC {pair.auc:.3f} (.5: none), MMD^2 {pair.mmd:.2g} (chance: "
            f"{pair.mmd_noise:.2g}), {pair.rows[0]} and {pair.rows[1]} users"
            for name, pair in pairs.items()
        ]


@dataclass(frozen=True)
class GoldenBehaviours:
    """Vectors of sampled users."""

    new_virtual_ND: Floats
    old_virtual_MD: Floats
    old_real_MD: Floats

    @property
    def _sets(self) -> tuple[Floats, Floats, Floats]:
        """The sets in the order of :data:`GOLDEN_SETS`."""
        return self.new_virtual_ND, self.old_virtual_MD, self.old_real_MD

    def describe(self) -> DriftInfo:
        """Compares the sets.

        Raises:
            ValueError: fewer than 20 users of either kind, or virtual behaviours that are the same
                for all of them.
        """
        num_new, num_old = len(self.new_virtual_ND), len(self.old_virtual_MD)
        if min(num_new, num_old) < MIN_USERS:
            raise ValueError(
                f"golden behaviours need {MIN_USERS} new and {MIN_USERS} old users, found "
                f"{num_new} and {num_old}; take more rows"
            )
        virtual_VD = np.concatenate([self.new_virtual_ND, self.old_virtual_MD])
        if constant_elements(virtual_VD).all():
            raise ValueError(
                f"golden behaviours: virtual behaviours of all {num_new} new and {num_old} old "
                "users are the same, so nothing could be told from them; leave --drift out"
            )
        bandwidth = median_distance(virtual_VD)
        real_bandwidth = median_distance(np.concatenate([self.old_virtual_MD, self.old_real_MD]))
        # Of other users each, or every real vector would have its own copy in the other set.
        halves = self.old_virtual_MD[::2], self.old_real_MD[1::2]
        return DriftInfo(
            dim=self.new_virtual_ND.shape[1],
            new_users=num_new,
            old_users=num_old,
            bandwidth=bandwidth,
            real_bandwidth=real_bandwidth,
            virtual_and_real=compare(*halves, real_bandwidth),
            new_and_old=compare(self.new_virtual_ND, self.old_virtual_MD, bandwidth),
        )

    def compare_served(self, served_UD: Floats, info: DriftInfo) -> dict[str, TwoSampleInfo]:
        """Compares virtual behaviours of served new users with each golden set, by its name.

        Args:
            served_UD: at least 10 vectors.
            info: description of these golden behaviours.
        """
        bandwidths = info.bandwidth, info.bandwidth, info.real_bandwidth
        return {
            name: compare(served_UD, golden_ND, bandwidth)
            for name, golden_ND, bandwidth in zip(GOLDEN_SETS, self._sets, bandwidths, strict=True)
        }

    def write(self, folder: Path) -> None:
        """Writes the file into a folder."""
        np.concatenate(self._sets).astype(_ELEMENT).tofile(folder / GOLDEN_BEHAVIOURS)

    @classmethod
    def read(cls, folder: Path, info: DriftInfo) -> "GoldenBehaviours":
        """Reads the file of a folder.

        Raises:
            ValueError: it is of another size than its description says.
        """
        path = folder / info.file
        with open_regular(path, follow_link=True) as file:
            content = file.read(info.num_bytes + 1)
        if len(content) != info.num_bytes:
            raise ValueError(
                f"'{path}' should have {info.num_bytes:,} bytes, as its manifest says; copy or "
                "export it anew"
            )
        vectors = np.frombuffer(content, _ELEMENT).reshape(-1, info.dim)
        ends = info.new_users, info.new_users + info.old_users
        return cls(*np.split(vectors, ends))


def compare(first_ND: NDArray[Any], second_MD: NDArray[Any], bandwidth: float) -> TwoSampleInfo:
    """Compares two sets of vectors by a classifier and by the MMD.

    Args:
        first_ND: at least 10 vectors.
        second_MD: at least 10 vectors, independent of the first.
        bandwidth: of the MMD's kernel.
    """
    squared, noise = mean_discrepancy(first_ND, second_MD, bandwidth)
    return TwoSampleInfo(
        auc=two_sample_auc(first_ND, second_MD),
        mmd=squared,
        mmd_noise=noise,
        rows=(len(first_ND), len(second_MD)),
    )


def behaviour_vectors(behaviours: list[NDArray[Any]]) -> Floats:
    """Means behaviours over positions and concatenates sequences, [users, elements].

    Args:
        behaviours: of each sequence, ``[users, positions, dim]``.
    """
    return np.concatenate([one.mean(1, dtype=np.float32) for one in behaviours], axis=1)
