"""Golden requests of an exported model and the trainer's scores of them, as a JSON file."""

import json
from collections.abc import Iterable
from pathlib import Path

from mail_torchrec.inference.artifact_files import GOLDEN
from mail_torchrec.inference.requests import Request
from mail_torchrec.utils.safe_paths import read_document


def write_golden(folder: Path, requests: Iterable[Request], scores: dict[str, list[float]]) -> None:
    """Writes golden requests, each with its own scores.

    Args:
        folder: folder of the exported model.
        requests: golden requests.
        scores: by output name, the scores of all requests' candidates one after another.
    """
    golden, start = [], 0
    for request in requests:
        stop = start + len(request.candidates)
        own_scores = {name: values[start:stop] for name, values in scores.items()}
        golden.append(
            {"user": request.user, "candidates": list(request.candidates), "scores": own_scores}
        )
        start = stop
    (folder / GOLDEN).write_text(json.dumps(golden, indent=1, allow_nan=False) + "\n")


def read_golden(folder: Path) -> list[tuple[Request, dict[str, list[float]]]]:
    """Reads the golden requests with their scores by output name.

    Raises:
        ValueError: the file is no such list.
    """
    try:
        return [
            (Request(entry["user"], entry["candidates"]), entry["scores"])
            for entry in json.loads(read_document(folder / GOLDEN, follow_link=True))
        ]
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"'{folder / GOLDEN}' is damaged; copy or export it anew") from error
