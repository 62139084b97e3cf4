"""Descriptions of ranks for messages: where in the code each is, and which ones are missing."""

import os
import sys
from collections.abc import Collection, Mapping
from threading import main_thread
from traceback import StackSummary, extract_stack


def place_of_main_thread() -> str:
    """Describes where this process's main thread is."""
    return place_in(extract_stack(sys._current_frames()[main_thread().ident or 0]))


def place_in(stack: StackSummary) -> str:
    """Formats the innermost line of this package's code, and the innermost line of all."""
    ours = [frame for frame in stack if f"{os.sep}mail_torchrec{os.sep}" in frame.filename]
    lines = dict.fromkeys(
        f"{'/'.join(frame.filename.split(os.sep)[-2:])}:{frame.lineno}"
        for frame in (*ours[-1:], *stack[-1:])
    )
    return " > ".join(lines)


def format_status(
    missing: Collection[int], ranks_at: Mapping[tuple[str, str], Collection[int]]
) -> str:
    """Describes missing ranks, and the ranks at each span and place, the fewest first."""
    lines = []
    if missing:
        gone = "killed, out of memory, or the host is gone"
        lines.append(f"no answer from {format_ranks(missing)}: {gone}")
    fewest_first = sorted(ranks_at.items(), key=lambda item: len(item[1]))
    lines += [
        f"{format_ranks(ranks)} in '{name}' at {place}" for (name, place), ranks in fewest_first
    ]
    return "; ".join(lines)


def format_ranks(ranks: Collection[int]) -> str:
    """Formats ranks as ``rank 3`` or ``ranks 0-2, 5``."""
    intervals: list[list[int]] = []
    for rank in sorted(ranks):
        if intervals and rank == intervals[-1][1] + 1:
            intervals[-1][1] = rank
        else:
            intervals.append([rank, rank])
    return ("ranks " if len(ranks) > 1 else "rank ") + ", ".join(
        f"{first}" if first == last else f"{first}-{last}" for first, last in intervals
    )
