"""The exported graph's outputs are those that the towers declare: names, order, shapes, dtypes."""

from pathlib import Path

import pytest

from tests.export.test_inference_model import CASES, root
from tests.export.test_onnx_graph import session
from tests.support.untrained_model import UntrainedModel, requests_of

__all__ = ["root"]  # the fixture


@pytest.mark.parametrize("case", ["tasks-own-dmr", "two-sequences-dmr", "mean_fill"])
def test_the_graph_has_the_names_shapes_and_dtypes_of_the_specs(
    root: Path, tmp_path: Path, case: str
) -> None:
    whole = UntrainedModel(root, tmp_path, **CASES[case])
    runtime = session(whole, tmp_path)
    names = [spec.name for spec in whole.outputs]
    assert [value.name for value in runtime.get_outputs()] == names
    assert [spec.role for spec in whole.outputs].index("virtual_behaviours") > 0
    rows = requests_of(whole.path, whole.config.schema_, range(3))
    rows[0].candidates.extend(rows[1].candidates)
    sizes = {"users": 3, "candidates": 4}
    for spec, value in zip(whole.outputs, runtime.run(None, whole.encode(rows)), strict=True):
        assert value.shape == (sizes[spec.axis], *spec.size), spec.name
        assert str(value.dtype) == spec.dtype, spec.name
