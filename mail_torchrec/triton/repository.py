"""An exported model as a version of a model in a repository of Triton."""

import os
import re
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import mail_torchrec
from mail_torchrec.inference.batch_first import users_first, users_first_inputs
from mail_torchrec.inference.manifest import MANIFEST, ONNX_MODEL, read_golden
from mail_torchrec.inference.scorer import Scorer, open_session
from mail_torchrec.triton.names import EXPORTED, Backend

CONFIG = "config.pbtxt"
_MODEL_PY = '''"""What Triton's Python backend loads: the code that lies beside this file, not what else may be installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from mail_torchrec.triton.model import TritonPythonModel  # noqa: E402, F401
'''


@dataclass(frozen=True)
class Order:
    """What is to be laid out."""

    model: Path
    """An exported model."""
    out: Path
    """The repository."""
    backend: Backend
    name: str | None = None
    """The model's for clients; None takes the run's."""
    version: int = 1
    max_batch: int = 64
    max_candidates: int = 2000


def lay_out(order: Order) -> Path:
    """Writes the version's folder, and the model's around it where there is none; it is there whole and checked, or not at all.

    Files are linked, or copied where they cannot be: on another file system.

    Returns:
        The version's folder.

    Raises:
        ValueError: no good export, a bad name, the version exists, or the model's other versions
            have other inputs or settings.
    """
    _check_libraries()
    scorer = Scorer(order.model)
    scorer.check_golden()
    name = order.name or scorer.manifest.name
    if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        raise ValueError(
            f"a model's name should be letters, digits and _.- for Triton, received '{name}'; "
            "choose another --name"
        )
    model = order.out / name
    config = _config(order, scorer)
    _check_place(model, order.version, config)
    part = order.out / f".{name}.{os.getpid()}.part"
    part.mkdir(parents=True)
    try:
        (part / CONFIG).write_text(config)
        version = part / str(order.version)
        version.mkdir()
        (_write_python if order.backend == "python" else _write_graph)(scorer, version)
        if model.exists():
            version.rename(model / version.name)
        else:
            part.rename(model)
    finally:
        shutil.rmtree(part, ignore_errors=True)  # what a failure left
    return model / str(order.version)


def _config(order: Order, scorer: Scorer) -> str:
    from mail_torchrec.triton.config_file import config_file

    inputs = users_first_inputs(scorer.manifest.inputs)
    return config_file(
        order.backend, inputs, scorer.probabilities, order.max_batch, order.max_candidates
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


def _write_python(scorer: Scorer, version: Path) -> None:
    for name in (MANIFEST, *scorer.manifest.files):
        _link(scorer.folder / name, version / EXPORTED / name)
    package = Path(mail_torchrec.__file__).parent
    shutil.copytree(package, version / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    (version / "model.py").write_text(_MODEL_PY)


def _write_graph(scorer: Scorer, version: Path) -> None:
    from mail_torchrec.export.onnx_graph import DENSE
    from mail_torchrec.inference.batch_first_graph import write_users_first

    tables = [file for table in scorer.manifest.tables.values() for file in table.files.values()]
    for name in (MANIFEST, DENSE, *tables):
        _link(scorer.folder / name, version / name)
    write_users_first(
        scorer.folder / ONNX_MODEL,
        scorer.manifest.inputs,
        scorer.probabilities,
        version / ONNX_MODEL,
    )
    _check_graph(scorer, version / ONNX_MODEL)


def _check_graph(scorer: Scorer, path: Path) -> None:
    session, bound = open_session(path), scorer.manifest.agreement["onnx"].bound
    for request, expected in read_golden(scorer.folder):
        inputs = users_first(scorer.encode([request]), scorer.manifest.inputs)
        for name, scores_UN in zip(
            scorer.probabilities, session.run(scorer.probabilities, inputs), strict=True
        ):
            difference = float(np.abs(scores_UN[0] - expected[name]).max())
            assert difference <= bound, f"{name} differs by {difference} from the golden scores"


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _check_libraries() -> None:
    if missing := [name for name in ("onnx_ir", "tritonclient") if find_spec(name) is None]:
        raise ValueError(
            f"laying out a repository needs {', '.join(missing)}: pip install "
            "'mail-torchrec[export,serve]'"
        )
