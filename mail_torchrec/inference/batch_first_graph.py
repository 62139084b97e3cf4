"""Exported graph with batch-first inputs; its tables stay in their files.

``U`` users, ``N`` candidates of each. A server that concatenates requests must not let one request
break another, and ONNX Runtime ends the whole call at an id above its table. So the graph clips
values to their range, and gives NaN scores to a user who had a value outside of it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from mail_torchrec.inference.batch_first import batch_first_inputs
from mail_torchrec.inference.requests import USER_OF_CANDIDATE, InputSpec
from mail_torchrec.utils.output_spec import OutputSpec

_DTYPES = {"int64": ir.DataType.INT64, "float32": ir.DataType.FLOAT, "bool": ir.DataType.BOOL}
_FLOAT32_MAX = float(np.finfo(np.float32).max)


def write_batch_first_graph(
    source: Path, inputs: Sequence[InputSpec], outputs: Sequence[OutputSpec], path: Path
) -> None:
    """Writes the graph; its external files must lie beside it as they lie beside the source.

    Args:
        source: exported graph.
        inputs: inputs of the exported model.
        outputs: outputs to keep, ``[candidates]`` in the source and ``[users, candidates]`` here.
        path: file to write.
    """
    model = ir.load(source)
    graph = model.graph
    specs = batch_first_inputs(inputs)
    given = {spec.name: _value(spec.name, spec.shape, spec.dtype) for spec in specs}
    head = _GraphTape()
    is_valid_U1, sizes = _connect_inputs(
        head, specs, given, {value.name: value for value in graph.inputs}
    )
    graph.inputs.clear()
    graph.inputs.extend(given.values())
    graph.insert_before(graph[0], head.nodes)

    tail = _GraphTape()
    flat = {value.name: value for value in graph.outputs}
    results = [_connect_output(tail, spec, flat[spec.name], is_valid_U1, sizes) for spec in outputs]
    graph.outputs.clear()
    graph.outputs.extend(results)
    graph.extend(tail.nodes)
    separate_names(graph)
    ir.save(model, path)


class _GraphTape(ir.tape.Tape):
    """Recorder of graph nodes in the order in which they run."""

    def op(
        self, kind: str, *inputs: ir.Value, output: ir.Value | None = None, **attributes: int
    ) -> ir.Value:
        """Adds a node and returns its only output."""
        return super().op(kind, inputs, attributes, output=output)

    def constant(self, value: object) -> ir.Value:
        """Adds a constant; integers are int64."""
        return super().op("Constant", [], {"value": ir.tensor(np.asarray(value))})

    def clip(self, spec: InputSpec, given: Mapping[str, ir.Value]) -> tuple[ir.Value, ir.Value]:
        """Clips an input to its range.

        Returns:
            The clipped values, shaped as the input; and [U] 1 for a user whose values were all in
            range, else 0. NaN is outside every range.
        """
        value = given[spec.name]
        low, high = self._range(spec, given)
        clipped = self.op("Clip", value, low, high)
        clipped.shape, clipped.type = value.shape, value.type
        same = self.op("Cast", self.op("Equal", value, clipped), to=ir.DataType.INT64)
        axes = self.constant(np.arange(1, len(spec.shape)))
        return clipped, self.op("ReduceMin", same, axes, keepdims=0)

    def _range(self, spec: InputSpec, given: Mapping[str, ir.Value]) -> tuple[ir.Value, ir.Value]:
        if spec.dtype == "float32":
            return (
                self.constant(np.float32(-_FLOAT32_MAX if spec.low is None else spec.low)),
                self.constant(np.float32(_FLOAT32_MAX)),
            )
        low, high = self.constant(spec.low), self.constant(spec.high)
        if spec.length_of is None:
            return low, high
        ids = given[spec.length_of]  # a length is at most the width of the list that was sent
        width = self.op("Shape", ids, start=len(ids.shape) - 1)
        return low, self.op("Min", high, self.op("Squeeze", width))

    def flatten(self, value: ir.Value, target: ir.Value) -> None:
        """Reshapes an input for the exported graph.

        Users and candidates share one axis there, and one value a user has no second axis.
        """
        if len(value.shape) == len(target.shape):
            self.op("Identity", value, output=target)
        else:
            shape = self.op("Concat", self.constant([-1]), self.op("Shape", value, start=2), axis=0)
            self.op("Reshape", value, shape, output=target)

    def number_users(self, sizes: ir.Value, target: ir.Value) -> None:
        """Computes the user index of each candidate [U * N] from its position.

        Args:
            sizes: U and N, [2].
            target: value of the exported graph's input.
        """
        users, axis = self.op("Gather", sizes, self.constant(0)), self.constant([1])
        numbers_U1 = self.op(
            "Unsqueeze", self.op("Range", self.constant(0), users, self.constant(1)), axis
        )
        self.op("Reshape", self.op("Expand", numbers_U1, sizes), self.constant([-1]), output=target)


def _connect_inputs(
    tape: _GraphTape,
    specs: Sequence[InputSpec],
    given: Mapping[str, ir.Value],
    flat: Mapping[str, ir.Value],
) -> tuple[ir.Value, ir.Value]:
    """Connects batch-first inputs to those of the exported graph.

    Returns:
        [U, 1], true for users whose values were all in range; and U and N, [2].
    """
    flags = []
    for spec in specs:
        value = given[spec.name]
        if spec.dtype != "bool":
            value, is_valid_U = tape.clip(spec, given)
            flags.append(is_valid_U)
        tape.flatten(value, _renamed(flat[spec.name]))
    rectangle = next(given[spec.name] for spec in specs if "candidates" in spec.shape)
    sizes = tape.op("Shape", rectangle, start=0, end=2)
    tape.number_users(sizes, _renamed(flat[USER_OF_CANDIDATE]))
    is_valid_U = tape.op("Cast", tape.op("Min", *flags), to=ir.DataType.BOOL)
    return tape.op("Unsqueeze", is_valid_U, tape.constant([1])), sizes


def _connect_output(
    tape: _GraphTape, spec: OutputSpec, flat: ir.Value, is_valid_U1: ir.Value, sizes: ir.Value
) -> ir.Value:
    """Reshapes an output to [U, N], NaN for users with a value out of range."""
    target = _value(spec.name, ("users", "candidates"), spec.dtype)
    scores_UN = tape.op("Reshape", _renamed(flat), sizes)
    invalid = tape.constant(np.dtype(spec.dtype).type(np.nan))
    return tape.op("Where", is_valid_U1, scores_UN, invalid, output=target)


def _value(name: str, shape: Sequence[int | str], dtype: str) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(_DTYPES[dtype]))


def _renamed(value: ir.Value) -> ir.Value:
    value.name = f"{value.name}.flat"
    return value


def separate_names(graph: ir.Graph) -> None:
    """Renames the weights and inner values that are called as an input or output is.

    A column may bear any name, ``mul_1`` or ``embedding`` for example, and the exporter names inner
    values by their operations. Columns have no dot in their names.
    """
    outer = [*graph.inputs, *graph.outputs]
    taken, outer_values = {value.name for value in outer}, set(map(id, outer))
    inner = [value for node in graph.all_nodes() for value in node.outputs]
    for value in [*graph.initializers.values(), *inner]:
        if value.name in taken and id(value) not in outer_values:
            value.name = f"{value.name}.inner"
