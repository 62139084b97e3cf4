"""A fault at every call to the system that a training makes for its run directory.

``tests/support/faulty_disk.py`` says which calls are met, and by which faults.
"""

import re
from pathlib import Path

import pytest

from tests.support.faulty_disk import FAULTS, Case, Outcome, is_available, outcomes
from tests.support.small_rows import write_rows

pytestmark = pytest.mark.skipif(not is_available(), reason="needs a C compiler")

_KEPT = re.compile(r"step-\d+|\.step-\d+\.(partial|deleted)")
"""Whole checkpoints, those that were being written, and older ones that were being deleted."""
_CALMS = 2
"""Outcomes without a fault, in front: of a run that begins, and of one that goes on."""


def faults_of(found: list[Outcome]) -> list[str]:
    """Says what is wrong about each outcome, by the first one's metrics and records."""
    calm = found[0]
    assert calm.metrics and calm.log and not calm.error and not found[1].error
    wrong = []
    for outcome in found[1:]:
        published = [name for name in outcome.after if name.startswith("step-")]
        begins = f"going on after step {int(published[-1][5:])}," if published else None
        claims = {
            "it ends as one without a fault": outcome.metrics == calm.metrics,
            "so do its records": outcome.log == calm.log,
            "nothing good is renamed": all(map(_KEPT.fullmatch, outcome.after)),
            "no checkpoint is lost": published[-1:] >= outcome.before[-1:],
            "it goes on from the newest": begins is None
            or begins in outcome.resumed
            or "is finished, with" in outcome.resumed,
            "the error is the user's": "a fault of ours" not in str(outcome.error)
            and outcome.error != "it hung",
        }
        if broken := [claim for claim, holds in claims.items() if not holds]:
            wrong.append(f"{outcome.case}: {broken}: {outcome.error}: {outcome.resumed[-300:]}")
    return wrong


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_rows(tmp_path / "rows" / "train" / "a.parquet", 64, seed=1)
    return tmp_path / "rows"


def test_a_run_survives_a_fault(root: Path, tmp_path: Path) -> None:
    """Each fault once: at the beginning, while records are written, while a checkpoint is."""
    places = {"EIO": (20, True), "denied": (60, True)}
    cases = [Case(fault, *places.get(fault, (170, False))) for fault in FAULTS[1:]]
    found = outcomes(root, tmp_path / "runs", cases)
    assert faults_of(found) == []
    assert [one.case for one in found[_CALMS:]] == cases


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("part", [1])  # of 41: all of them take over ten minutes
@pytest.mark.parametrize("resumes", [False, True], ids=["begins", "resumes"])
def test_a_run_survives_a_fault_at_every_call(
    root: Path, tmp_path: Path, resumes: bool, part: int
) -> None:
    """Faults take turns over the calls, so that neighbours meet different ones."""
    calms = outcomes(root, tmp_path / "calm", [])
    assert faults_of(calms) == []
    assert all(sum(calm.calls.values()) > calm.places > 200 for calm in calms)
    kinds = FAULTS[1:]
    cases = [
        Case(kinds[call % len(kinds)], call, resumes)
        for call in range(part, calms[resumes].places, 41)
    ]
    assert faults_of(outcomes(root, tmp_path / "runs", cases)) == []
