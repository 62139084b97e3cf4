import pytest
from scipy import stats

from mail_torchrec.reporting.intervals import t_quantile


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 9, 10, 30, 101, 1000])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_t_quantile_equals_scipys(degrees: int, level: float) -> None:
    assert t_quantile(degrees, level) == pytest.approx(
        stats.t.ppf((1 + level) / 2, degrees), rel=1e-9
    )


def test_t_quantile_refuses_what_has_none() -> None:
    with pytest.raises(ValueError, match=r"received 0 and 0.95"):
        t_quantile(0)
