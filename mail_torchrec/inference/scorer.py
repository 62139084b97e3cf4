"""Scoring of raw requests by ONNX Runtime; servers and clients without torch import it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from mail_torchrec.data.encoders import Encoders
from mail_torchrec.drift.golden_behaviours import GoldenBehaviours
from mail_torchrec.inference.artifact_files import MANIFEST, ONNX_MODEL, VOCABULARIES
from mail_torchrec.inference.golden_file import read_golden
from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.inference.request_encoder import RequestEncoder
from mail_torchrec.inference.requests import Request, graph_output
from mail_torchrec.inference.tables.version_lock import VersionLock
from mail_torchrec.utils.output_spec import SCORES

Arrays = dict[str, npt.NDArray[Any]]
"""Arrays by input or output name, shaped as the manifest says."""


class Scorer:
    """A loaded exported model.

    Args:
        folder: folder that ``mail-torchrec export`` wrote.
        threads: number of ONNX Runtime's threads; None leaves it to the runtime.
        verify: compare every file with its checksum first.

    Raises:
        ValueError: a file is missing or damaged, or the manifest is of another format.
    """

    def __init__(self, folder: Path, *, threads: int | None = None, verify: bool = True) -> None:
        self.folder, self.manifest = folder, ArtifactManifest.read(folder)
        if any(table.spare is not None for table in self.manifest.tables.values()):
            self._lock = VersionLock(folder / MANIFEST)
        if verify:
            self.manifest.check_files(folder)
        schema = self.manifest.schema_
        self.encode = RequestEncoder(
            schema,
            Encoders.load(folder / VOCABULARIES, schema),
            self.manifest.value_types,
            self.manifest.new_items,
        )
        drift = self.manifest.drift
        self.golden_behaviours = GoldenBehaviours.read(folder, drift) if drift else None
        self._session = open_session(folder / ONNX_MODEL, threads)
        self.scores = [spec.name for spec in self.manifest.outputs_of(*SCORES)]

    def score(self, request: Request) -> Arrays:
        """Computes the scores of a request's candidates by name, each [candidates].

        Raises:
            ValueError: a value that cannot be scored; the message names it.
        """
        return self.run(self.encode([request]))

    def run(self, inputs: Arrays, outputs: Sequence[str] | None = None) -> Arrays:
        """Computes outputs by name, by default the scores.

        Other outputs cost next to nothing: the scores are computed from them.

        Args:
            inputs: arrays by input name, [users, ...] or [candidates, ...] as the manifest says.
            outputs: names of the manifest's outputs.
        """
        names = list(self.scores if outputs is None else outputs)
        of_graph = [graph_output(name, self.manifest.inputs) for name in names]
        return dict(zip(names, self._session.run(of_graph, inputs), strict=True))

    def max_difference(self) -> float:
        """Computes the largest difference of any score from the golden scores."""
        return max_difference(self.folder, self.encode, self.run)

    def check_golden(self) -> None:
        """Scores the golden requests.

        Raises:
            ValueError: the scores differ from the trainer's by more than the tolerance.
        """
        difference, tolerance = self.max_difference(), self.manifest.parity["onnx"].tolerance
        if not difference <= tolerance:
            raise ValueError(
                f"its scores of the golden requests differ by {difference:.2g} from the "
                f"trainer's, at most {tolerance:g} are allowed"
            )


def max_difference(folder: Path, encode: RequestEncoder, run: Callable[[Arrays], Arrays]) -> float:
    """Computes the largest difference of any score from a folder's golden scores.

    Above 1, expected values differ by a share of themselves.

    The requests are scored one by one, and all of them together.

    Args:
        folder: folder that ``mail-torchrec export`` wrote.
        encode: encoder of its requests.
        run: function from inputs to outputs by name.
    """
    golden = read_golden(folder)
    one_by_one = [run(encode([request])) for request, _ in golden]
    together = run(encode([request for request, _ in golden]))
    differences = []
    for name in golden[0][1]:
        expected = np.concatenate([scores[name] for _, scores in golden])
        found = np.concatenate([scores[name] for scores in one_by_one])
        differences += [
            (np.abs(part - expected) / np.maximum(expected, 1)).max()
            for part in (found, together[name])
        ]
    return float(np.nan_to_num(differences, nan=np.inf).max())


def open_session(path: Path, threads: int | None = None) -> onnxruntime.InferenceSession:
    """Loads a graph into ONNX Runtime.

    Raises:
        ValueError: it cannot be loaded.
    """
    options = onnxruntime.SessionOptions()
    # Spinning idle threads would take the cores from other requests.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own classes share no base
        raise ValueError(
            f"'{path}' cannot be loaded by ONNX Runtime {onnxruntime.__version__}: {error}"
        ) from error
