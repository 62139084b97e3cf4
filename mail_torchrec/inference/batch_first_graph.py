"""An exported graph that takes :mod:`users_first <mail_torchrec.inference.batch_first>` inputs, its tables left where they lie.

``U`` users, ``N`` candidates of each. A server that joins requests must not let one harm another,
and ONNX Runtime ends the whole call where an id is too large: so values are brought into their
range, and a user with any that was not has NaN for scores.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from mail_torchrec.inference.batch_first import users_first_inputs
from mail_torchrec.inference.requests import USER_OF_CANDIDATE, Input

_DTYPES = {"int64": ir.DataType.INT64, "float32": ir.DataType.FLOAT, "bool": ir.DataType.BOOL}
_LARGEST = float(np.finfo(np.float32).max)


def write_users_first(
    source: Path, inputs: Sequence[Input], outputs: Sequence[str], path: Path
) -> None:
    """Writes the graph. The files that it names are to lie beside it as they lie beside the source.

    Args:
        source: the exported graph.
        inputs: the exported model's.
        outputs: to keep, all ``[candidates]`` there; here ``[users, candidates]``.
        path: to write.
    """
    model = ir.load(source)
    graph = model.graph
    flat = {value.name: value for value in graph.inputs}
    specs = users_first_inputs(inputs)
    given = {spec.name: _value(spec.name, spec.shape, _DTYPES[spec.dtype]) for spec in specs}
    before = _Nodes()
    graph.inputs.clear()
    graph.inputs.extend(given.values())
    valid = []
    for spec in specs:
        value = given[spec.name]
        if spec.dtype != "bool":
            value, is_valid_U = before.in_range(spec, given)
            valid.append(is_valid_U)
        before.flatten(value, _renamed(flat[spec.name]))
    sizes = before.op(
        "Shape",
        next(given[spec.name] for spec in specs if "candidates" in spec.shape),
        start=0,
        end=2,
    )  # U, N
    before.number_users(sizes, _renamed(flat[USER_OF_CANDIDATE]))
    graph.insert_before(graph[0], before.nodes)

    after = _Nodes()
    is_valid_U1 = after.op(
        "Unsqueeze",
        after.op("Cast", after.op("Min", *valid), to=ir.DataType.BOOL),
        after.constant([1]),
    )
    scores = {value.name: value for value in graph.outputs}
    graph.outputs.clear()
    for name in outputs:
        target = _value(name, ("users", "candidates"), ir.DataType.FLOAT)
        scores_UN = after.op("Reshape", _renamed(scores[name]), sizes)
        graph.outputs.append(
            after.op(
                "Where", is_valid_U1, scores_UN, after.constant(np.float32(np.nan)), output=target
            )
        )
    graph.extend(after.nodes)
    ir.save(model, path)


class _Nodes(ir.tape.Tape):
    """Nodes in the order in which they run."""

    def op(
        self, kind: str, *inputs: ir.Value, output: ir.Value | None = None, **attributes: int
    ) -> ir.Value:
        """A node's only output."""
        return super().op(kind, inputs, attributes, output=output)

    def constant(self, value: object) -> ir.Value:
        """A constant; integers are int64."""
        return super().op("Constant", [], {"value": ir.tensor(np.asarray(value))})

    def in_range(self, spec: Input, given: dict[str, ir.Value]) -> tuple[ir.Value, ir.Value]:
        """An input's values brought into their range; and 1 for each user [U] who had no other, else 0. NaN is in no range."""
        value = given[spec.name]
        low, high = (
            (np.float32(-_LARGEST), np.float32(_LARGEST))
            if spec.dtype == "float32"
            else (spec.low, spec.high)
        )
        most = self.constant(high)
        if spec.name.endswith(".length"):  # nor longer than the list that was sent
            ids = given[spec.name.removesuffix(".length")]
            width = self.op("Shape", ids, start=len(ids.shape) - 1)
            most = self.op("Min", most, self.op("Squeeze", width))
        inside = self.op("Clip", value, self.constant(low), most)
        inside.shape, inside.type = value.shape, value.type
        same = self.op("Cast", self.op("Equal", value, inside), to=ir.DataType.INT64)
        axes = self.constant(np.arange(1, len(spec.shape)))
        return inside, self.op("ReduceMin", same, axes, keepdims=0)

    def flatten(self, value: ir.Value, target: ir.Value) -> None:
        """As the exported graph wants it: users and candidates in one axis, none for a user's one value."""
        if len(value.shape) == len(target.shape):
            self.op("Identity", value, output=target)
        else:
            shape = self.op("Concat", self.constant([-1]), self.op("Shape", value, start=2), axis=0)
            self.op("Reshape", value, shape, output=target)

    def number_users(self, sizes: ir.Value, target: ir.Value) -> None:
        """The user of each candidate [U * N], by its place."""
        users, axis = self.op("Gather", sizes, self.constant(0)), self.constant([1])
        numbers_U1 = self.op(
            "Unsqueeze", self.op("Range", self.constant(0), users, self.constant(1)), axis
        )
        self.op("Reshape", self.op("Expand", numbers_U1, sizes), self.constant([-1]), output=target)


def _value(name: str, shape: Sequence[int | str], dtype: ir.DataType) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))


def _renamed(value: ir.Value) -> ir.Value:
    value.name = f"{value.name}.flat"
    return value
