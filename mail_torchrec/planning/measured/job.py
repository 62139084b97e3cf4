"""Job that the ranks run: plans to measure, or the machine itself."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from mail_torchrec.settings import Settings, first_fault
from mail_torchrec.utils.run_files import write_file
from mail_torchrec.utils.safe_paths import PlainName, read_document

JOB = "job.json"
RESULTS = "results.jsonl"


class PlanToMeasure(Settings):
    """One plan of one scenario."""

    name: str
    config: PlainName
    """Configuration, a file beside the job's."""
    plan: PlainName
    """Plan file beside the job's."""
    num_rows: dict[str, Annotated[int, Field(ge=1)]]
    """Rows by table name."""
    vector_dims: dict[str, Annotated[int, Field(ge=1)]] = {}
    """Number of elements by vector column."""


class RankJob(Settings):
    """Work of the ranks: plans in this order, or the calibration."""

    device: Literal["auto", "cpu", "cuda"]
    timeout: float = Field(gt=0)
    """Seconds that a collective waits for the other ranks."""
    steps: int = Field(ge=1)
    """Steps that are timed of each plan."""
    plans: list[PlanToMeasure] = []
    calibrates: bool = False
    """Measure the machine instead of plans."""

    def save(self, folder: Path) -> None:
        """Writes the job, and empties its results."""
        write_file(folder / JOB, self.model_dump_json(indent=1) + "\n")
        write_file(folder / RESULTS, "")


def read_job(folder: Path) -> RankJob:
    """Reads the job of a folder.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    path = folder / JOB
    try:
        return RankJob.model_validate_json(read_document(path, follow_link=True))
    except OSError as error:
        raise ValueError(
            f"no job at '{path}' ({error.strerror}); plan --measure and plan --calibrate write it "
            "where the ranks must be able to read it"
        ) from error
    except ValidationError as error:
        raise ValueError(f"'{path}' is damaged: {first_fault(error)}") from error


def append_result(folder: Path, result: dict[str, Any]) -> None:
    """Appends a result, so that it is there whatever happens to the next plan."""
    with (folder / RESULTS).open("a") as file:
        file.write(json.dumps(result) + "\n")


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Reads the results so far; a last line that is not whole is left out."""
    path = folder / RESULTS
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]
