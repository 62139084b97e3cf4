"""Names in an ONNX graph, where inputs, outputs, weights and inner values share one set."""

import onnx_ir as ir


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
