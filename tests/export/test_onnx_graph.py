"""The exported graph has the outputs that the towers declare: names, order, shapes, dtypes. ONNX
Runtime scores with it as the trainer's model does, whatever the number of rows."""

from pathlib import Path

import numpy as np
import onnx_ir
import onnxruntime
import pytest
import torch
from torch import nn

from mail_torchrec.export.exported_program import export_program
from mail_torchrec.export.onnx_graph import write_onnx
from mail_torchrec.export.table_files import GatherTable, TableFile, TableFiles
from mail_torchrec.inference.scorer import Arrays
from tests.export.test_inference_model import CASES, root
from tests.support.untrained_model import UntrainedModel, requests_of

__all__ = ["root"]  # the fixture


def session(whole: UntrainedModel, folder: Path) -> onnxruntime.InferenceSession:
    write_onnx(
        export_program(whole.inference_model, "tower"),
        [spec.name for spec in whole.inputs],
        [spec.name for spec in whole.outputs],
        whole.files,
        folder / "model.onnx",
    )
    return onnxruntime.InferenceSession(folder / "model.onnx")


def check_files(whole: UntrainedModel, folder: Path) -> None:
    """The graph names its tables' files, holds no table, and tells nothing of this machine."""
    model = onnx_ir.load(folder / "model.onnx")
    places = {
        name: value.const_value
        for name, value in model.graph.initializers.items()
        if name in whole.files
    }
    assert {name: Path(value.location).name for name, value in places.items()} == {
        name: f.path.name for name, f in whole.files.items()
    }
    assert (folder / "model.onnx").stat().st_size < 300_000
    assert str(Path(__file__).parents[2]).encode() not in (folder / "model.onnx").read_bytes()


def check_outputs(whole: UntrainedModel, runtime: onnxruntime.InferenceSession) -> None:
    """The graph has the names, shapes and dtypes of the specs."""
    assert [value.name for value in runtime.get_outputs()] == [spec.name for spec in whole.outputs]
    rows = requests_of(whole.path, whole.config.schema_, range(3))
    rows[0].candidates.extend(rows[1].candidates)
    sizes = {"users": 3, "candidates": 4}
    for spec, value in zip(whole.outputs, runtime.run(None, whole.encode(rows)), strict=True):
        assert value.shape == (sizes[spec.axis], *spec.size), spec.name
        assert str(value.dtype) == spec.dtype, spec.name


def test_small_tables_of_equal_rows_are_looked_up_all_the_same(tmp_path: Path) -> None:
    """The exporter merges constants of equal bytes, such as untrained first-order weights."""
    files = {}
    for name in ("one", "other"):
        file = TableFile(tmp_path / f"{name}.float32", "float32", (5, 1))
        file.create()
        file.write_shard(torch.arange(5.0).unsqueeze(1), 0, 0)
        files[name] = file
    module = nn.ModuleDict({name: GatherTable(TableFiles(file)) for name, file in files.items()})

    class Difference(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = module

        def forward(self, one_B: torch.Tensor, other_B: torch.Tensor) -> torch.Tensor:
            difference: torch.Tensor = self.tables["one"](one_B) - self.tables["other"](other_B)
            return difference

    ids = torch.tensor([4, 2]), torch.tensor([1, 3])
    tables = {f"tables.{name}.weight": file for name, file in files.items()}
    program = torch.export.export(Difference(), ids)
    write_onnx(program, ["one", "other"], ["found"], tables, tmp_path / "model.onnx")
    runtime = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    given = dict(zip(("one", "other"), (each.numpy() for each in ids), strict=True))
    assert runtime.run(None, given)[0].ravel().tolist() == [3.0, -1.0]


@pytest.mark.parametrize(
    "case",
    [
        "tasks-own-dmr",
        "two-sequences-dmr",
        # Parts of these by themselves, or of what test_export.py, test_zero_shot_switches.py and
        # test_remedies.py export.
        pytest.param("crosses-mean_fill", marks=pytest.mark.long),
        pytest.param("tasks-deepfm", marks=pytest.mark.long),
        pytest.param("dmr", marks=pytest.mark.long),
        pytest.param("tasks-base_dnn", marks=pytest.mark.long),
    ],
)
def test_onnx_runtime_scores_rows_as_the_trainer_does(
    root: Path, tmp_path: Path, case: str
) -> None:
    whole = UntrainedModel(root, tmp_path, **CASES[case])
    expected, runtime = whole.trainer_scores(300), session(whole, tmp_path)
    check_files(whole, tmp_path)
    check_outputs(whole, runtime)
    virtual = [spec for spec in whole.outputs if spec.role == "virtual_behaviours"]
    assert len(virtual) == {"dmr": 0, "two-sequences-dmr": 2}.get(case, 1)
    requests = requests_of(whole.path, whole.config.schema_, range(300))
    assert {not request.user["history"] for request in requests[:2]} | {
        not requests[16].user["history"]
    } == {True, False}
    assert sum(request.candidates[0]["item"] >= 1000 for request in requests) == 50, "unknown ids"

    def scores(inputs: Arrays) -> Arrays:
        return dict(zip(expected, runtime.run(list(expected), inputs), strict=True))

    for num_rows in (1, 2, 17, 300):
        found = scores(whole.encode(requests[:num_rows]))
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values[:num_rows], rtol=0, atol=1e-5)
    for is_new in (True, False):  # no new user, and none but new ones
        rows = [i for i, request in enumerate(requests) if (not request.user["history"]) == is_new]
        found = scores(whole.encode([requests[i] for i in rows]))
        np.testing.assert_allclose(found["pctr"], expected["pctr"][rows], rtol=0, atol=1e-5)
