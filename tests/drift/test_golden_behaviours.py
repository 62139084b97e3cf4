"""Golden behaviours of which nothing could be told are refused."""

import numpy as np
import pytest

from mail_torchrec.drift.golden_behaviours import GoldenBehaviours


@pytest.mark.parametrize("rounding", [0, 1e-7])
def test_virtual_behaviours_that_are_the_same_for_all_are_refused(rounding: float) -> None:
    random = np.random.default_rng(0)
    same = np.array([0.7, -0.2, 0.1]) * (1 + rounding * random.normal(size=(50, 1)))
    virtual, real = same.astype(np.float32), random.normal(size=(25, 3)).astype(np.float32)
    golden = GoldenBehaviours(virtual[:25], virtual[25:], real)
    with pytest.raises(ValueError, match="all 25 new and 25 old users are the same"):
        golden.describe()
    others = GoldenBehaviours(virtual[:25], real, real)
    assert others.describe().new_users == 25
