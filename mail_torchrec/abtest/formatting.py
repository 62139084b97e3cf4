"""Text forms of estimates and comparisons."""

from mail_torchrec.abtest.estimates import Estimate, MetricComparison


def percent(value: float, digits: int, sign: str = "") -> str:
    """Formats a share as percent.

    Args:
        value: the share.
        digits: decimals.
        sign: ``+`` shows the sign of positive values too.
    """
    return f"{value * 100:{sign}.{digits}f} %"


def estimate_text(estimate: Estimate | None, sign: str = "") -> str:
    """Formats a value and its interval as percent; a dash for None."""
    if estimate is None:
        return "-"
    low, high = (f"{bound * 100:{sign}.2f}" for bound in (estimate.low, estimate.high))
    return f"{percent(estimate.value, 2, sign)} [{low}, {high}]"


def p_text(p: float | None) -> str:
    """Formats a p value; a dash for None."""
    return "-" if p is None else f"{p:.2g}"


def verdict(comparison: MetricComparison) -> str:
    """Says in words if the candidate gains or loses."""
    lift = comparison.lift
    if lift is None:
        return "no lift can be given, as an arm has no such event"
    text = estimate_text(lift, "+")
    if lift.low <= 0 <= lift.high:
        return f"no difference is clear of chance, {text}"
    return f"the candidate {'gains' if lift.value > 0 else 'loses'}, {text}"
