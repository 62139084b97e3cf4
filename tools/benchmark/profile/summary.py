"""Sums the operations of profiled steps: by span and group, by module, and the products."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from tools.benchmark.profile.operators import PRODUCTS
from tools.benchmark.profile.trace import Operation, Place

COLUMNS = (
    "input",
    "lookup",
    "zero_shot",
    "ranking",
    "zero_shot, backward",
    "ranking, backward",
    "backward, the rest",
    "optimizer",
    "communication",
    "the rest",
)
"""Parts of a step; the backward pass by the tower that its operators are the gradient of."""
_TOWERS = ("zero_shot", "ranking")


def summarise(operations: Iterable[Operation], steps: int) -> dict[str, Any]:
    """Sums operations, all numbers a step.

    Args:
        operations: of one thread.
        steps: number of steps that they are of.

    Returns:
        ``parts``: column -> group -> seconds; ``modules``: tower and module -> seconds forward,
        backward, in products, and FLOP by number format; ``products``: seconds, FLOP by number
        format.
    """
    parts: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    modules: defaultdict[str, dict[str, Any]] = defaultdict(_empty_module)
    products = _empty_module()
    for operation in operations:
        seconds, place = operation.seconds / steps, operation.place
        parts[column_of(place)][operation.group] += seconds
        sums = [products]
        if place.tower in _TOWERS:
            sums.append(modules[f"{place.tower}: {place.module or 'the rest'}"])
        for one in sums:
            one["backward" if place.span == "backward" else "forward"] += seconds
            if operation.group == PRODUCTS:
                one["products"] += seconds
                flops = one["flops"]
                flops.setdefault(operation.number_format, 0.0)
                flops[operation.number_format] += operation.flops / steps
    return {
        "parts": {column: dict(parts[column]) for column in COLUMNS if column in parts},
        "modules": dict(sorted(modules.items(), key=lambda entry: -_seconds(entry[1]))),
        "products": {"seconds": products["products"], "flops": products["flops"]},
    }


def column_of(place: Place) -> str:
    """Returns the column of :data:`COLUMNS` of a place in a step."""
    if place.span == "backward":
        return f"{place.tower}, backward" if place.tower in _TOWERS else "backward, the rest"
    return place.span or "the rest"


def seconds_at_limit(flops: dict[str, float], limits: dict[str, float]) -> float:
    """Computes the seconds that products would take at the machine's rate.

    Args:
        flops: by number format.
        limits: of ``machine_limits.py``.
    """
    return sum(count / limits[f"gemm_{name}"] for name, count in flops.items() if name)


def _empty_module() -> dict[str, Any]:
    return {"forward": 0.0, "backward": 0.0, "products": 0.0, "flops": {}}


def _seconds(module: dict[str, Any]) -> float:
    return float(module["forward"] + module["backward"])
