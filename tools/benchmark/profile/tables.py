"""Formats profiles as Markdown tables: what bounds a step, its parts by group, its modules."""

from collections.abc import Iterator
from typing import Any

from mail_torchrec.reporting.markdown import markdown_table
from tools.benchmark.profile.operators import BETWEEN, GROUPS, PRODUCTS
from tools.benchmark.profile.summary import COLUMNS, seconds_at_limit
from tools.benchmark.trainers import REFERENCE

Profiles = dict[str, Any]
"""Trainer -> its profile, see ``summary.py``."""


def profile_tables(found: dict[str, Any], limits: dict[str, float]) -> Iterator[str]:
    """Formats the results of ``step_profile.py``.

    Args:
        found: profiles of trainers, and of ranks.
        limits: of the machine.
    """
    profiles: Profiles = found["trainers"]
    yield "## What bounds a step"
    yield _bounds(profiles, limits)
    yield (
        "*At the limit*: the products of the step at the rate of the machine's fastest product. "
        "*Bound*: as many times the reference's rows a second as if all else took no time. "
        "Under the profiler steps take longer; times of groups are those under it."
    )
    for name, profile in profiles.items():
        yield f"### {name}: ms a step by group of operators"
        yield _groups(profile)
        if profile["modules"]:
            yield f"### {name}: parts of the towers"
            yield _modules(profile, limits)
    if ranks := found.get("ranks"):
        yield "### Ranks of one thread each: ms a step"
        yield _ranks(ranks)
        yield "### Collectives of two ranks, a step"
        yield _collectives(ranks["2"])
        yield (
            "*In it*: from a collective's start to its end on the thread that carries it out. *Of "
            "that exchange*: of the rank that waits for nobody. *Early*: a rank had called a "
            "collective and the other one had not; where nothing else is left to do, it waits."
        )


def _bounds(profiles: Profiles, limits: dict[str, float]) -> str:
    reference = profiles.get(REFERENCE)
    rows = []
    for name, profile in profiles.items():
        products, seconds = profile["products"], profile["seconds"]
        flops, at_limit = (
            sum(products["flops"].values()),
            seconds_at_limit(products["flops"], limits),
        )
        cells = [
            name,
            _ms(seconds),
            _ms(profile["profiled_seconds"]),
            f"{flops / 1e9:,.1f}",
            _ms(products["seconds"]),
            f"{flops / max(products['seconds'], 1e-9) / 1e9:,.0f}",
            _ms(at_limit),
            f"{products['seconds'] / profile['profiled_seconds']:.0%}",
        ]
        if reference is not None:
            cells += [
                f"{reference['seconds'] / seconds:.2f}",
                f"{reference['seconds'] / max(at_limit, 1e-9):.1f}",
            ]
        rows.append(cells)
    header = [
        "trainer",
        "ms a step",
        "profiled",
        "GFLOP of products",
        "their ms",
        "GFLOP/s",
        "ms at the limit",
        "products' share",
        *(["x reference", "bound"] if reference is not None else []),
    ]
    return _table(header, rows)


def _groups(profile: dict[str, Any]) -> str:
    parts = profile["parts"]
    columns = [column for column in COLUMNS if column in parts]
    rows = []
    for group in GROUPS:
        values = [parts[column].get(group, 0.0) for column in columns]
        if any(values):
            rows.append([group, *map(_ms, values), _ms(sum(values))])
    totals = [sum(parts[column].values()) for column in columns]
    rows.append(["**all**", *map(_ms, totals), _ms(sum(totals))])
    return _table(["", *columns, "all"], rows)


def _modules(profile: dict[str, Any], limits: dict[str, float]) -> str:
    rows = [
        [
            name,
            _ms(module["forward"]),
            _ms(module["backward"]),
            _ms(module["products"]),
            f"{sum(module['flops'].values()) / 1e9:,.2f}",
            _ms(seconds_at_limit(module["flops"], limits)),
        ]
        for name, module in profile["modules"].items()
    ]
    header = ["", "forward ms", "backward ms", PRODUCTS, "GFLOP", "ms at the limit"]
    return _table(header, rows)


def _ranks(ranks: dict[str, list[dict[str, Any]]]) -> str:
    rows = []
    for number, profiles in ranks.items():
        for rank, profile in enumerate(profiles):
            parts = profile["parts"]
            rows.append(
                [
                    f"{number} ranks, rank {rank}" if number != "1" else "1 rank",
                    _ms(profile["seconds"]),
                    _ms(profile["cpu_seconds"]),
                    _ms(profile["profiled_seconds"]),
                    _ms(profile["products"]["seconds"]),
                    _ms(sum(parts.get("communication", {}).values())),
                    _ms(parts.get("backward, the rest", {}).get(BETWEEN, 0.0)),
                    _ms(profile["waits"].get("all", {}).get("early", 0.0)),
                ]
            )
    header = [
        "",
        "a step",
        "of it on a core",
        "profiled",
        "products",
        "waits in `communication`",
        "between operators of backward",
        "early",
    ]
    return _table(header, rows)


def _collectives(profiles: list[dict[str, Any]]) -> str:
    kinds = [kind for kind in profiles[0]["waits"] if kind != "all"]
    rows = []
    for kind in kinds:
        waits = [profile["waits"][kind] for profile in profiles]
        in_it = [_ms(wait["seconds"]) for wait in waits]
        rows.append([kind, f"{waits[0]['calls']:.1f}", *in_it, _ms(waits[0]["exchange"])])
    ranks = [f"rank {rank}: ms in it" for rank in range(len(profiles))]
    return _table(["", "calls", *ranks, "of that exchange"], rows)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.1f}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    return markdown_table(header, rows).strip()
