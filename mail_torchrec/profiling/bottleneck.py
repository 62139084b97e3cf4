"""Sentence that says what bounded a run, and what to try."""

from collections.abc import Mapping
from dataclasses import dataclass

PARTS = ("input", "lookup", "dense", "communication", "rest")
"""Parts of a training's time: waiting for batches, embedding lookup and the tables' update, towers
and dense optimizers, collectives, and the rest: evaluations on the way, checkpoints, records."""


@dataclass(frozen=True)
class RunFacts:
    """Settings and machine of a run, for the advice."""

    world_size: int
    num_workers: int
    """Reader processes of each rank."""
    group_by_user: bool
    sharded: bool
    compiled: bool
    precision: str
    device: str
    """``cpu`` or ``cuda``."""
    num_threads: int
    """Threads of a rank for dense operations."""
    num_cores: int
    """Cores that a rank may use for itself."""


@dataclass(frozen=True)
class TimeShares:
    """Time of a training's steps, by part."""

    steps: int
    """Number of steps that were measured; 0 where the run was too short."""
    seconds: float = 0.0
    """Mean time from one step to the next."""
    shares: Mapping[str, float] | None = None
    """Part -> share of it."""


def time_shares(spans: Mapping[str, float], seconds: float) -> dict[str, float]:
    """Divides the time of a training among its parts; shares add up to 1.

    The backward pass is one span. Its time is divided as the forward pass's is among lookup, towers
    and communication, which is an estimate.

    Args:
        spans: name -> seconds of self time within the steps.
        seconds: of all, what lies between the steps included.
    """
    own = {name: spans.get(name, 0.0) for name in ("input", "lookup", "communication")}
    towers = spans.get("zero_shot", 0.0) + spans.get("ranking", 0.0)
    forward = own["lookup"] + own["communication"] + towers
    scale = 1 + spans.get("backward", 0.0) / forward if forward else 1.0
    parts = {
        "input": own["input"],
        "lookup": own["lookup"] * scale,
        "dense": towers * scale + spans.get("optimizer", 0.0),
        "communication": own["communication"] * scale,
    }
    total = max(seconds, sum(parts.values()))
    parts["rest"] = total - sum(parts.values())
    return {name: part / total if total else 0.0 for name, part in parts.items()}


def bottleneck_line(time: TimeShares, facts: RunFacts) -> str:
    """Returns one line: the part that took most of the time, the others, and what to try."""
    if not time.steps or time.shares is None:
        return "too few steps to say what bounded the training"
    shares = time.shares
    first = max(PARTS, key=lambda name: shares[name])
    others = ", ".join(f"{name} {shares[name]:.0%}" for name in PARTS if name != first)
    return (
        f"the training was bounded by {_NAMES.get(first, first)}: {shares[first]:.0%} of "
        f"{time.seconds * 1e3:.1f} ms a step ({others}); try {advice(first, facts)}"
    )


_NAMES = {"rest": "what is not the steps' own work (the rest)"}


def advice(part: str, facts: RunFacts) -> str:
    """Returns what to try where a part of :data:`PARTS` takes most of the time."""
    if part == "input":
        return _input_advice(facts)
    if part == "lookup":
        return _lookup_advice(facts)
    if part == "dense":
        return _dense_advice(facts)
    if part == "communication":
        return (
            "a larger train.batch_size (fewer exchanges for the same rows), train.accumulate=2, or "
            "another sharding (mail-torchrec plan); ranks that wait for the slowest count here too"
        )
    assert part == "rest"
    return (
        "fewer evaluations (train.evaluate_every, train.evaluate_rows) and checkpoints "
        "(checkpoint.every), or a larger train.batch_size"
    )


def _input_advice(facts: RunFacts) -> str:
    if facts.num_workers:
        return f"data.num_workers={2 * facts.num_workers}, or data on a faster disk"
    return "data.num_workers=2, which reads beside the training"


def _lookup_advice(facts: RunFacts) -> str:
    tries = []
    if not facts.sharded:
        tries.append("sharding.enabled=true, which updates tables within the backward pass")
    if not facts.group_by_user:
        tries.append("data.group_by_user=true, which looks up each user once a batch")
    tries.append("shorter histories (max_length) or smaller vectors (dim) in the schema")
    return ", ".join(tries[:-1]) + (", or " if tries[:-1] else "") + tries[-1]


def _dense_advice(facts: RunFacts) -> str:
    tries = []
    if facts.device == "cuda" and facts.precision == "float32":
        tries.append("train.precision=tf32 or bfloat16")
    if facts.device == "cpu" and facts.num_threads < facts.num_cores:
        tries.append(f"OMP_NUM_THREADS={facts.num_cores}")
    if not facts.compiled:
        tries.append("train.compile=true for a long run")
    if not facts.group_by_user:
        tries.append("data.group_by_user=true, where rows of one user share work")
    tries.append("more ranks, or smaller towers")
    return ", ".join(tries)
