"""Raw requests -> scores by ONNX Runtime. Needs no torch: this is what a server or a client imports."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from mail_torchrec.data.encoders import Encoders
from mail_torchrec.inference.manifest import ONNX_MODEL, VOCABULARIES, Manifest, read_golden
from mail_torchrec.inference.requests import Request, RequestEncoder

PROBABILITIES = ("pctr", "pcvr", "pctcvr")
Arrays = dict[str, npt.NDArray[Any]]


class Scorer:
    """An exported model, loaded.

    Args:
        folder: what ``mail-torchrec export`` wrote.
        threads: of ONNX Runtime; None leaves it to the runtime.
        verify: compare every file with its checksum first.

    Raises:
        ValueError: a file is missing or damaged.
    """

    def __init__(self, folder: Path, *, threads: int | None = None, verify: bool = True) -> None:
        self.folder, self.manifest = folder, Manifest.read(folder)
        if verify:
            self.manifest.check_files(folder)
        schema = self.manifest.schema_
        self.encode = RequestEncoder(
            schema, Encoders.load(folder / VOCABULARIES, schema), self.manifest.types
        )
        self._session = open_session(folder / ONNX_MODEL, threads)
        self.probabilities = [
            output.name for output in self.manifest.outputs if output.name in PROBABILITIES
        ]

    def score(self, request: Request) -> Arrays:
        """The probabilities of a request's candidates by name, each [candidates].

        Raises:
            ValueError: a value that cannot be scored; the message names it.
        """
        return self.run(self.encode([request]))

    def run(self, inputs: Arrays, outputs: Sequence[str] | None = None) -> Arrays:
        """Outputs by name; by default the probabilities. The others cost next to nothing: the scores are computed from them.

        Args:
            inputs: as the manifest describes them, of any number of users and candidates.
            outputs: names of the manifest's outputs.
        """
        names = list(self.probabilities if outputs is None else outputs)
        return dict(zip(names, self._session.run(names, inputs), strict=True))

    def difference(self) -> float:
        """The largest difference of any probability from the golden scores."""
        return largest_difference(self.folder, self.encode, self.run)

    def check_golden(self) -> None:
        """Scores the golden requests.

        Raises:
            ValueError: otherwise than the trainer did.
        """
        difference, bound = self.difference(), self.manifest.agreement["onnx"].bound
        if not difference <= bound:
            raise ValueError(
                f"its scores of the golden requests differ by {difference:.2g} from the "
                f"trainer's, at most {bound:g} are allowed"
            )


def largest_difference(
    folder: Path, encode: RequestEncoder, run: Callable[[Arrays], Arrays]
) -> float:
    """From the golden scores of a folder, of any probability: request by request, and all requests together.

    Args:
        folder: what ``mail-torchrec export`` wrote.
        encode: its requests to inputs.
        run: inputs to outputs by name.
    """
    golden = read_golden(folder)
    one_by_one = [run(encode([request])) for request, _ in golden]
    together = run(encode([request for request, _ in golden]))
    differences = []
    for name in golden[0][1]:
        expected = np.concatenate([scores[name] for _, scores in golden])
        found = np.concatenate([scores[name] for scores in one_by_one])
        differences += [np.abs(part - expected).max() for part in (found, together[name])]
    return float(np.nan_to_num(differences, nan=np.inf).max())


def open_session(path: Path, threads: int | None = None) -> onnxruntime.InferenceSession:
    """A graph, loaded.

    Raises:
        ValueError: it cannot be.
    """
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(
        "session.intra_op.allow_spinning", "0"
    )  # idle threads would take the cores from other requests
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own classes share no base
        raise ValueError(
            f"'{path}' cannot be loaded by ONNX Runtime {onnxruntime.__version__}: {error}"
        ) from error
