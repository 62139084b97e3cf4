"""Operators of a step, and the bytes that they write."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class OperatorCounter(TorchDispatchMode):
    """Counts operators that compute, and the bytes of their results.

    Views compute nothing. Lookups, and the gradients of whole tables that plain lookups have, are
    left out: sharded tables have kernels of their own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operators, self.written_bytes = 0, 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Runs an operator and counts it."""
        operator: Callable[..., Any] = func
        result = operator(*args, **(kwargs or {}))
        if not func.is_view and "embedding" not in func.name():
            self.operators += 1
            written = (part for part in tree_leaves(result) if isinstance(part, Tensor))
            self.written_bytes += sum(part.nbytes for part in written)
        return result
