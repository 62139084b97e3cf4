"""Model repository of Triton, made of an exported model."""

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from mail_torchrec.inference.artifact_files import DENSE_WEIGHTS, MANIFEST, ONNX_MODEL
from mail_torchrec.inference.batch_first import batch_first, batch_first_inputs
from mail_torchrec.inference.golden_file import read_golden
from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.inference.requests import InputSpec
from mail_torchrec.inference.scorer import Scorer, open_session
from mail_torchrec.inference.tables.table_rows import SPARE_TABLES
from mail_torchrec.triton.module_copy import copy_modules
from mail_torchrec.triton.names import EXPORTED, Backend
from mail_torchrec.utils.local_path import make_output_dir
from mail_torchrec.utils.output_spec import SCORES, OutputSpec

CONFIG = "config.pbtxt"
PYTHON_MODEL = "mail_torchrec.triton.python_backend"
"""Module of the Python backend's model, copied into the repository with all that it imports."""
_MODEL_PY = f'''"""Entry point of Triton's Python backend: loads the package beside this file."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from {PYTHON_MODEL} import TritonPythonModel  # noqa: E402, F401
'''


@dataclass(frozen=True)
class RepositoryOptions:
    """Options of a model repository."""

    model: Path
    """Folder of the exported model."""
    out: Path
    """Folder of the repository."""
    backend: Backend
    """Triton backend that runs the model."""
    name: str | None = None
    """Name of the model for clients; None takes the run's."""
    version: int = 1
    """Version of the model; Triton serves the greatest."""
    max_batch: int = 64
    """Most users that Triton joins in one call."""
    max_candidates: int = 2000
    """Most candidates of a request; of the Python backend."""
    allow_schema_change: bool = False
    """Add a version that takes other raw values or has other outputs than the one before."""


def write_repository(options: RepositoryOptions) -> Path:
    """Writes a version's folder, and the model's folder around it where there is none.

    The version is there whole and checked, or not at all. Files are hard links, or copies where
    links are impossible (another file system) or deltas may write into the file (spare rows); where
    the export has links, of what they lead to.

    Returns:
        The version's folder.

    Raises:
        ValueError: no good export, an invalid name, an existing version, or other versions of the
            model with other inputs or settings.
    """
    _check_libraries()
    manifest = ArtifactManifest.read(options.model)
    manifest.check_files(options.model)
    name = options.name or manifest.name
    _check_name(name)
    model, config = options.out / name, _config(options, manifest)
    if not options.allow_schema_change:
        _check_requests(model, manifest)
    _check_place(model, options.version, config)
    part = options.out / f".{name}.{os.getpid()}.part"
    make_output_dir(part)
    try:
        (part / CONFIG).write_text(config)
        version = part / str(options.version)
        exported = version / EXPORTED
        for file in (MANIFEST, *manifest.paths):
            _link(options.model / file, exported / file)
        _write_version(options.backend, exported, version)
        if model.exists():
            version.rename(model / version.name)
        else:
            part.rename(model)
    finally:
        shutil.rmtree(part, ignore_errors=True)  # remains of a failure
    return model / str(options.version)


def _write_version(backend: Backend, exported: Path, version: Path) -> None:
    """Completes a version's folder, which holds the exported model."""
    scorer = Scorer(exported, verify=False)  # its files were compared before they were linked
    scorer.check_golden()
    if backend == "python":
        copy_modules(PYTHON_MODEL, version)
        (version / "model.py").write_text(_MODEL_PY)
    else:
        _write_graph(scorer, version)
        shutil.rmtree(exported)


def _check_libraries() -> None:
    if missing := [name for name in ("onnx_ir", "tritonclient") if find_spec(name) is None]:
        raise ValueError(
            f"laying out a repository needs {', '.join(missing)}: pip install "
            "'mail-torchrec[export,serve]'"
        )


def _check_name(name: str) -> None:
    if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        raise ValueError(
            f"a model's name should be letters, digits and _.- for Triton, received '{name}'; "
            "choose another --name"
        )


def _check_place(model: Path, version: int, config: str) -> None:
    if (model / str(version)).exists():
        raise ValueError(
            f"'{model / str(version)}' exists already; choose another --version, the greatest "
            "serves"
        )
    if model.exists() and (not (model / CONFIG).exists() or (model / CONFIG).read_text() != config):
        raise ValueError(
            f"'{model}' has another {CONFIG}: its versions have other inputs or settings; choose "
            "another --name or --out"
        )


def _check_requests(model: Path, manifest: ArtifactManifest) -> None:
    """Refuses a version that takes other requests than the greatest version of the model.

    ``config.pbtxt`` has the encoded inputs alone: raw columns are the manifest's.
    """
    versions = [int(path.name) for path in model.glob("[1-9]*") if path.name.isdecimal()]
    if not versions:
        return
    folder = model / str(max(versions))
    served = ArtifactManifest.read(folder / EXPORTED if (folder / EXPORTED).exists() else folder)
    if changes := served.changes_for_clients(manifest):
        raise ValueError(
            f"'{folder}' takes other requests: {'; '.join(changes)}; choose another --name, or add "
            "it all the same with --allow-schema-change"
        )


def _config(options: RepositoryOptions, manifest: ArtifactManifest) -> str:
    from mail_torchrec.triton.config_file import config_file

    inputs = batch_first_inputs(manifest.inputs)
    outputs = manifest.outputs_of(*SCORES)
    if options.backend == "onnxruntime":
        _check_output_names(inputs, outputs)
    return config_file(options.backend, inputs, outputs, options.max_batch, options.max_candidates)


def _check_output_names(inputs: Sequence[InputSpec], outputs: Sequence[OutputSpec]) -> None:
    if both := sorted({spec.name for spec in inputs} & {spec.name for spec in outputs}):
        raise ValueError(
            f"--backend onnxruntime: inputs and outputs of Triton's ONNX Runtime backend share one "
            f"set of names, and {both} are both; take --backend python, or train with other names "
            "in schema.columns ('column' names the file's)"
        )


def _write_graph(scorer: Scorer, version: Path) -> None:
    """Writes a version of the ONNX Runtime backend: the batch-first graph and its weights."""
    from mail_torchrec.inference.batch_first_graph import write_batch_first_graph

    manifest = scorer.manifest
    tables = [file for table in manifest.tables.values() for file in table.files.values()]
    positions = [table.spare.positions for table in manifest.tables.values() if table.spare]
    for name in (MANIFEST, DENSE_WEIGHTS, *tables, *positions):
        _link(scorer.folder / name, version / name)
    outputs = manifest.outputs_of(*SCORES)
    path = version / ONNX_MODEL
    write_batch_first_graph(scorer.folder / ONNX_MODEL, manifest.inputs, outputs, path)
    _check_graph(scorer, path)


def _check_graph(scorer: Scorer, path: Path) -> None:
    """Compares the graph's scores of the golden requests with the trainer's."""
    session, tolerance = open_session(path), scorer.manifest.parity["onnx"].tolerance
    names = scorer.scores
    for request, expected in read_golden(scorer.folder):
        inputs = batch_first(scorer.encode([request]), scorer.manifest.inputs)
        for name, scores_UN in zip(names, session.run(names, inputs), strict=True):
            differences = np.abs(scores_UN[0] - expected[name]) / np.maximum(expected[name], 1)
            difference = float(differences.max())
            assert difference <= tolerance, f"{name} differs by {difference} from the golden scores"


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if SPARE_TABLES in source.parts:  # deltas write into these, once no version has rows there
        shutil.copy2(source, target)
        return
    try:  # what a link leads to: the link itself would lead nowhere from another place
        os.link(source.resolve(), target)
    except OSError:
        shutil.copy2(source, target)
