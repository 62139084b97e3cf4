"""The batch-first graph scores as the inference model does, with every kind of input."""

from pathlib import Path

import numpy as np
import onnxruntime

from mail_torchrec.inference.batch_first import batch_first
from mail_torchrec.inference.batch_first_graph import write_batch_first_graph
from mail_torchrec.inference.requests import Request
from mail_torchrec.towers.outputs import click_spec
from tests.export.test_inference_model import CASES, TWO, root
from tests.export.test_onnx_graph import session
from tests.support.untrained_model import UntrainedModel, requests_of

__all__ = ["root"]  # the fixture

EVERY = TWO | {
    "columns": TWO["columns"]
    | {"flag": {"group": "new_user"}, "seen": TWO["columns"]["seen"] | {"max_length": 1}},
}


def test_a_rectangle_scores_as_the_inference_model_does(root: Path, tmp_path: Path) -> None:
    whole = UntrainedModel(root, tmp_path, model=CASES["base_dnn"]["model"], schema=EVERY)
    assert {"flag", "seen", "labels.length", "noon", "tags"} <= {spec.name for spec in whole.inputs}
    session(whole, tmp_path)
    write_batch_first_graph(
        tmp_path / "model.onnx", whole.inputs, [click_spec()], tmp_path / "batch_first.onnx"
    )
    runtime = onnxruntime.InferenceSession(tmp_path / "batch_first.onnx")
    rows = requests_of(whole.path, whole.config.schema_, range(40))
    for users, candidates in ((1, 1), (1, 7), (5, 1), (6, 7)):
        requests = [
            Request(row.user, [other.candidates[0] for other in rows[i : i + candidates]])
            for i, row in enumerate(rows[:users])
        ]
        expected = whole.inference_outputs(requests)["pctr"].numpy().reshape(users, candidates)
        [found] = runtime.run(["pctr"], batch_first(whole.encode(requests), whole.inputs))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
