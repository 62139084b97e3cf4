"""Summary of ``prepare events`` for the terminal."""

from pathlib import Path

from mail_torchrec.prepare.resumable_steps import StepRecord

ROWS_FOLDER = "rows"
_DROPPED = {
    "without_time": "without a time",
    "unlikely_times": "at no plausible time",
    "never_valid": "that end where they begin",
}


def summary(prepared: StepRecord, out: Path) -> str:
    """Formats the counts, the time and memory taken, and the next command."""
    lines = [_table_line(label, counts) for label, counts in prepared["tables"].items()]
    days, counts = list(prepared["days"]), prepared["counts"]
    of_days = f"{days[0]} to {days[-1]} ({len(days)} days)"
    lines.append(f"{out / ROWS_FOLDER}: {prepared['rows']:,} rows, {of_days}")
    lines += [f"  {number:,} rows {_described(name)}" for name, number in counts.items() if number]
    peak = prepared["peak_rss_bytes"] / 1e9
    lines += [
        f"{prepared['seconds']:,} s, {prepared['rows_per_second']:,} rows read/s, peak memory (RSS "
        f"of this process) {peak:.2f} GB",
        f"mail-torchrec init --data {out / ROWS_FOLDER}",
    ]
    return "\n".join(lines)


def _table_line(label: str, counts: StepRecord) -> str:
    faults = [f"{counts[name]:,} {text}" for name, text in _DROPPED.items() if counts[name]]
    if label.startswith("events.") and counts["without_key"]:
        faults.insert(0, f"{counts['without_key']:,} without a user")
    text = f"{label}: {counts['rows']:,} rows"
    if faults:
        text += f"; left out: {', '.join(faults)}"
    if counts.get("duplicates"):
        text += f"; {counts['duplicates']:,} equal to another one (drop_duplicates removes them)"
    return text


def _described(name: str) -> str:
    kind, _, place = name.partition(" ")
    words = {
        "without_user": "have no user",
        "empty": f"have an empty {place}",
        "positive": f"are positive in {place}",
        "incomplete": f"have a window beyond the last event: their 0 of {place} may become 1",
        "not": f"are {name}",
    }
    return words[kind]
