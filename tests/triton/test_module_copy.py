"""The folder of Triton's Python backend holds the modules that score a request, and no trainer."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mail_torchrec.triton.module_copy import required_files
from mail_torchrec.triton.repository import PYTHON_MODEL, RepositoryOptions, write_repository
from tools.served import ROOT

ROOMS = {
    "__init__.py",
    "calibration",
    "data",
    "drift",
    "inference",
    "settings.py",
    "triton",
    "utils",
}

SCORE = """
import json, sys, types
from pathlib import Path

folder = Path(sys.argv[1])
sys.modules["torch"] = sys.modules["torchrec"] = None


class Tensor:
    def __init__(self, name, values):
        self.name, self.values = name, values

    def as_numpy(self):
        return self.values


backend = types.ModuleType("triton_python_backend_utils")
backend.Tensor = Tensor
backend.InferenceResponse = lambda tensors=None, error=None: error or tensors
backend.TritonError = lambda message, code: message
backend.TritonError.INVALID_ARG = 3
backend.get_input_tensor_by_name = lambda request, name: request
sys.modules[backend.__name__] = backend
sys.path.insert(0, str(folder))

import numpy as np
from model import TritonPythonModel

import mail_torchrec

assert Path(mail_torchrec.__file__).parent == folder / "mail_torchrec"
model = TritonPythonModel()
config = {"parameters": {"max_candidates": {"string_value": "40"}}}
model.initialize(
    {
        "model_repository": str(folder.parent),
        "model_version": folder.name,
        "model_config": json.dumps(config),
    }
)
golden = json.loads((folder / "exported" / "golden.json").read_text())
texts = [json.dumps({key: entry[key] for key in ("user", "candidates")}) for entry in golden]
requests = [Tensor("request", np.array([[text]], dtype=object)) for text in [*texts, "{"]]
*responses, refused = model.execute(requests)
assert "should be JSON" in refused, refused
differences = [
    np.abs(tensor.values - [entry["scores"][tensor.name]]).max()
    for entry, tensors in zip(golden, responses, strict=True)
    for tensor in tensors
]
print(len(differences), max(differences))
"""


@pytest.fixture(scope="module")
def version(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of version 1, moved away from all that it was made of."""
    folder = tmp_path_factory.mktemp("triton")
    write_repository(RepositoryOptions(exported / "first", folder / "here", "python", "ads"))
    shutil.copytree(folder / "here", folder / "there")
    shutil.rmtree(folder / "here")
    return folder / "there" / "ads" / "1"


def test_the_folder_holds_no_module_of_the_trainer(version: Path) -> None:
    package = version / "mail_torchrec"
    assert {path.name for path in package.iterdir()} == ROOMS
    copied = {path.relative_to(version) for path in package.rglob("*.py")}
    assert copied == set(required_files(PYTHON_MODEL))
    assert not any("import torch" in path.read_text() for path in package.rglob("*.py"))


def test_the_modules_are_found_from_the_imports() -> None:
    found = {str(path) for path in required_files("mail_torchrec.inference.raw_requests")}
    assert found == {
        f"mail_torchrec/{name}.py"
        for name in (
            *("__init__", "settings", "inference/__init__"),
            *("inference/datatypes", "inference/errors", "inference/raw_requests"),
        )
    }


def test_the_folder_alone_scores_the_golden_requests(version: Path, tmp_path: Path) -> None:
    entries = json.loads((version / "exported" / "golden.json").read_text())
    done = subprocess.run(
        [sys.executable, "-c", SCORE, str(version)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    count, difference = done.stdout.split()
    assert int(count) == 3 * len(entries) and float(difference) <= 1e-5
    assert str(ROOT / "mail_torchrec") not in done.stderr
