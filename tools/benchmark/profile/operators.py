"""Groups of PyTorch's operators, and the arithmetic of matrix products."""

from collections.abc import Mapping, Sequence
from typing import Any

PRODUCTS = "matrix products"
ELEMENTWISE = "elementwise"
GATHERS = "gathers, scatters"
COPIES = "copies, conversions"
SUMS = "sums, softmax, norms"
TABLES = "tables: lookup, update"
OPTIMIZER = "dense optimizer"
COLLECTIVES = "collectives"
BETWEEN = "between operators"
GROUPS = (
    PRODUCTS,
    ELEMENTWISE,
    GATHERS,
    COPIES,
    SUMS,
    TABLES,
    OPTIMIZER,
    COLLECTIVES,
    BETWEEN,
)
"""Groups in the order of the tables. ``between operators`` is Python, autograd's bookkeeping, views
and allocations, and a thread that waits for something."""

_NAMED = {
    PRODUCTS: "mm addmm bmm baddbmm mv addmv dot mkldnn_linear _addmm_activation",
    GATHERS: (
        "index_select index gather scatter scatter_ scatter_add scatter_add_ index_add index_add_ "
        "index_copy index_copy_ index_put_ _index_put_impl_ index_fill_ embedding "
        "embedding_dense_backward _embedding_bag _embedding_bag_dense_backward nonzero "
        "masked_select masked_scatter take repeat_interleave sort argsort searchsorted"
    ),
    COPIES: "copy_ cat stack clone fill_ zero_ constant_pad_nd _foreach_copy_ _foreach_zero_",
    SUMS: (
        "sum mean _softmax _log_softmax _softmax_backward_data _log_softmax_backward_data cumsum "
        "norm linalg_vector_norm max min amax amin argmax any all logsumexp var std "
        "native_batch_norm native_batch_norm_backward _foreach_norm"
    ),
    BETWEEN: (
        "empty empty_like empty_strided as_strided view _unsafe_view reshape _reshape_alias t "
        "transpose permute expand slice select split split_with_sizes chunk narrow unbind squeeze "
        "unsqueeze detach alias resize_ set_ to _to_copy contiguous item _local_scalar_dense "
        "result_type lift_fresh flatten numpy_T matmul linear zeros ones zeros_like ones_like "
        "full new_zeros new_empty new_full new_ones expand_as view_as type_as is_nonzero unfold"
    ),
}
_GROUP_OF = {name: group for group, names in _NAMED.items() for name in names.split()}
_PREFIXES = {
    "fbgemm::": TABLES,
    "c10d::": COLLECTIVES,
    "gloo:": COLLECTIVES,
    "nccl:": COLLECTIVES,
    "_c10d_functional::": COLLECTIVES,
}
_FACTORS = {"addmm": 1, "baddbmm": 1, "addmv": 1, "_addmm_activation": 1}
"""Place of the left factor among the inputs, where it is not the first."""


def group_of(name: str) -> str:
    """Returns the group of an operator or of another event of a profile, by its name.

    Args:
        name: ``aten::mm`` for example; names without a namespace are Python's and autograd's.
    """
    for prefix, group in _PREFIXES.items():
        if name.startswith(prefix):
            return group
    namespace, _, operator = name.rpartition("::")
    if namespace != "aten":
        return BETWEEN
    if operator.startswith(("_fused_adam", "_foreach_")) and operator not in _GROUP_OF:
        return OPTIMIZER
    return _GROUP_OF.get(operator, ELEMENTWISE)


def product_flops(name: str, shapes: Sequence[Any]) -> float:
    """Counts the floating point operations of a matrix product.

    Args:
        name: of the operator.
        shapes: of its inputs, as a profile has them.

    Returns:
        ``2 m k n`` for each matrix of a batch; 0 for everything that is no product.
    """
    operator = name.removeprefix("aten::")
    if _GROUP_OF.get(operator) != PRODUCTS or operator == name:
        return 0.0
    place = _FACTORS.get(operator, 0)
    left, right = shapes[place : place + 2]
    columns = right[-1] if len(right) > 1 else 1
    count = 2.0 * columns
    for size in left:
        count *= size
    return count


def product_type(arguments: Mapping[str, Any]) -> str:
    """Returns the number format of a product's factors, ``float32`` or ``bfloat16``.

    Args:
        arguments: of the event.
    """
    types = arguments.get("Input type", ())
    return "bfloat16" if any("BFloat16" in str(kind) for kind in types) else "float32"
