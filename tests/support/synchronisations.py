"""Operations at which the host waits for the device, each with the line of ours that asked for it.

    with Synchronisations() as found:
        loss, outputs = model(batch)
        loss.backward()
    assert found.lines() == []

It needs no GPU: what would wait there is known by the operation and by its arguments. On plain CPU
tensors every tensor stands for one of the device, so batches should be read before; with
``device="cuda"`` (tensors of ``pretend_gpu.py``, or of a real GPU) only the device's tensors count.
"""

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_ROOT = f"{Path(__file__).parents[2]}/"
# Places of code whose lines are not named: environments, this file and the pretended GPU.
_SKIPPED = (f"{_ROOT}.venv", __file__, str(Path(__file__).with_name("pretend_gpu.py")))
_ENGINE = str(Path(torch.__file__).parent / "autograd" / "graph.py")

# Operators that read a value of the device, whatever their arguments: sizes of results are values.
_ALWAYS = {
    "aten::_linalg_eigh", "aten::_linalg_svd", "aten::_local_scalar_dense", "aten::_unique",
    "aten::_unique2", "aten::argwhere", "aten::bincount", "aten::equal", "aten::histc",
    "aten::is_nonzero", "aten::isin", "aten::item", "aten::masked_select", "aten::multinomial",
    "aten::nonzero", "aten::segment_reduce", "aten::unique_consecutive", "aten::unique_dim",
    "aten::unique_dim_consecutive",
}  # fmt: skip
# Operators that do so where an argument, which says how large the result is, is left out.
_WITHOUT = {
    "aten::repeat_interleave": "output_size",
    "fbgemm::dense_to_jagged": "total_L",
    "fbgemm::jagged_index_select": "num_dense_output_rows",
    "fbgemm::keyed_jagged_index_select_dim1": "selected_lengths_sum",
    "fbgemm::permute_1D_sparse_data": "permuted_lengths_sum",
    "fbgemm::permute_2D_sparse_data": "permuted_lengths_sum",
    "fbgemm::permute_sparse_features": "permuted_lengths_sum",
}
_INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
# Methods that hand a tensor's values to Python; on the CPU they run no operator.
_TO_HOST = {"tolist", "numpy", "cpu", "__array__", "__dlpack__"}


class Synchronisation(NamedTuple):
    """One wait of the host."""

    operation: str
    line: str
    """``mail_torchrec/FILE.py:LINE`` that asked for it; with "(backward)", that line's backward."""

    def __str__(self) -> str:
        return f"{self.line}: {self.operation}"


class Synchronisations(TorchDispatchMode):
    """Records the operations at which the host would wait for the device, while it is entered.

    Args:
        device: type of the device whose tensors count; "cpu" counts all.
    """

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.found: list[Synchronisation] = []
        self._device, self._methods = device, _Methods(self)

    def lines(self) -> list[str]:
        """Returns each distinct wait once, with how often it was found."""
        counted = {str(found): self.found.count(found) for found in self.found}
        return [f"{found} ({number}x)" for found, number in counted.items()]

    def __enter__(self) -> Self:
        super().__enter__()
        self._methods.__enter__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is slow
            self._anomaly = torch.autograd.set_detect_anomaly(True, check_nan=False)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._anomaly.__exit__()
        self._methods.__exit__(kind, error, traceback)
        super().__exit__(kind, error, traceback)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = _named_arguments(func, args, kwargs or {})
        if self._waits(func.name().split(".")[0], given):
            self.record(func.name())
        return func(*args, **(kwargs or {}))

    def record(self, operation: str) -> None:
        """Records a wait at the line that runs now."""
        self.found.append(Synchronisation(operation, _line_of_now()))

    def counts(self, value: Any) -> bool:
        """Returns whether a value is a tensor that stands for one of the device."""
        return isinstance(value, Tensor) and self._device in ("cpu", value.device.type)

    def _waits(self, name: str, given: Mapping[str, Any]) -> bool:
        """Decides by the operator's name and its arguments, by name."""
        if name in ("aten::_to_copy", "aten::copy_"):
            return self._copies_and_waits(given)
        if not any(self.counts(tensor) for tensor in _tensors(given.values())):
            return False
        if name in _WITHOUT:
            return given.get(_WITHOUT[name]) is None
        if name in _INDEXED:
            return self._index_waits(given)
        return name in _ALWAYS

    def _copies_and_waits(self, given: Mapping[str, Any]) -> bool:
        """Copies between host and device wait, but for others' from and to pinned memory."""
        source: Tensor = given["src"] if "src" in given else given["self"]
        target = given["self"].device if "src" in given else given.get("device") or source.device
        ends = {source.device.type, torch.device(target).type}
        if self._device == "cpu" or ends != {"cpu", self._device} or not source.numel():
            return False
        from_host = source.device.type == "cpu"
        return not (given.get("non_blocking") and (source.is_pinned() or not from_host))

    def _index_waits(self, given: Mapping[str, Any]) -> bool:
        """Masks wait, for their ones are counted; but one value is written without that."""
        indices = [index for index in given["indices"] if index is not None]
        if self._device != "cpu" and any(index.device.type == "cpu" for index in indices):
            return any(index.dim() for index in indices if index.device.type == "cpu")
        if not any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            return False
        values = given.get("values")
        is_fill = values is not None and values.numel() == 1 and len(indices) == 1
        return not is_fill or bool(given.get("accumulate"))


class _Methods(TorchFunctionMode):
    """Tells of methods that hand values to Python without an operator."""

    def __init__(self, recorder: Synchronisations) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        is_copy = name == "to" and "cpu" in [*args[1:2], (kwargs or {}).get("device")]
        # On a device, the same are copies to the host, which the operators tell.
        if (name in _TO_HOST or is_copy) and args and self._recorder._device == "cpu":
            self._recorder.record(name)
        return func(*args, **(kwargs or {}))


def _named_arguments(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    names = [argument.name for argument in func._schema.arguments]
    return dict(zip(names, args, strict=False)) | dict(kwargs)


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _line_of_now() -> str:
    """The innermost line that is not a library's, of what runs or of what made this backward."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename != _ENGINE:
        if not _is_library(name := frame.f_code.co_filename):
            return _shortened(name, frame.f_lineno)
        frame = frame.f_back
    node = torch._C._current_autograd_node()
    for entry in reversed(node.metadata.get("traceback_", []) if node is not None else []):
        name, line = entry.split('"')[1], entry.split(", line ")[1].split(",")[0]
        if not _is_library(name):
            return f"{_shortened(name, int(line))} (backward)"
    return "?"


def _is_library(name: str) -> bool:
    """Returns whether a file of code is Python's, a package's, or what pretends and records."""
    return not name.startswith(_ROOT) or name.startswith(_SKIPPED)


def _shortened(name: str, line: int) -> str:
    return f"{name.removeprefix(_ROOT)}:{line}"
