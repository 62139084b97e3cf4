"""Verdict of a GPU check: a line for each stage, made of the record."""

from collections.abc import Sequence

from tools.gpu.record import Fact, StageEnd

_WIDTH = 240
_WORDS = {"failed": "FAILED", "out of time": "TIME", "skipped": "SKIPPED"}


def is_passed(results: Sequence[Fact | StageEnd], stage: str) -> bool:
    """Returns whether a stage came to its end, and nothing that it judged was wrong."""
    return _word(stage, results) == "ok"


def verdict_lines(results: Sequence[Fact | StageEnd], stages: Sequence[str]) -> list[str]:
    """Formats one line a stage: its word, its seconds, and the texts of its facts.

    Args:
        results: of the record, in the order in which they were written.
        stages: names, in the order of the lines.
    """
    width = max(map(len, stages))
    return [_line(stage, results, width) for stage in stages]


def _line(stage: str, results: Sequence[Fact | StageEnd], width: int) -> str:
    facts = [one for one in results if isinstance(one, Fact) and one.stage == stage]
    texts = [f"WRONG {one.name}: {one.text or one.value}" for one in facts if one.ok is False]
    if (end := _end(stage, results)) is not None and end.text:
        texts.append(end.text)
    texts += [one.text for one in facts if one.text and one.ok is not False]
    seconds = f"{end.seconds:.0f}" if end is not None else "-"
    text = " ".join("; ".join(texts).split())
    short = text if len(text) <= _WIDTH else text[: _WIDTH - 4] + " ..."
    return f"{_word(stage, results):<8}{stage:<{width}} {seconds:>4} s  {short}"


def _end(stage: str, results: Sequence[Fact | StageEnd]) -> StageEnd | None:
    ends = [one for one in results if isinstance(one, StageEnd) and one.stage == stage]
    return ends[-1] if ends else None


def _word(stage: str, results: Sequence[Fact | StageEnd]) -> str:
    end = _end(stage, results)
    if end is None:
        return "not run"
    if end.outcome != "done":
        return _WORDS[end.outcome]
    wrong = (one for one in results if isinstance(one, Fact) and one.stage == stage)
    return "WRONG" if any(one.ok is False for one in wrong) else "ok"
