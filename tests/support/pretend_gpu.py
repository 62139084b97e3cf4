"""A GPU that is only pretended: tensors that say ``cuda:0`` and compute on the CPU.

Autograd, its thread for a device, and CUDA's autocast run for real, and tensors of two devices may
not meet, so a tensor that was made on the wrong device is found without any GPU. Kernels, memory,
streams and FBGEMM's fused tables are not pretended. What :func:`pretended` registers in torch
stays, so it is for processes of their own (``tests/support/ranks.py`` starts such a process).
"""

import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Self
from unittest.mock import Mock, patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("cuda", 0)
_CPU = torch.device("cpu")
_TORCH = Path(torch.__file__).parent
# Operators whose arguments may be of two devices, as on a GPU.
_BETWEEN_DEVICES = {
    "aten::_to_copy", "aten::copy_", "aten::_index_put_impl_", "aten::index", "aten::index_put",
    "aten::index_put_", "aten::_fused_adam_", "aten::_fused_adamw_",
}  # fmt: skip


class MixedDevicesError(RuntimeError):
    """Tensors of the host and of the device met in one operator."""


class PretendTensor(torch.Tensor):
    """A tensor that says ``cuda:0``; its values are in ``host``, a tensor of the CPU."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor) -> Self:
        made: Self = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, host.size(), strides=host.stride(), storage_offset=host.storage_offset(),
            dtype=host.dtype, device=DEVICE,
        )  # fmt: skip
        made.host = host
        return made

    def tolist(self) -> Any:
        """Copies the values to the host, as torch does by itself where it knows the class."""
        return self.cpu().tolist()

    def __repr__(self, **_: Any) -> str:
        return f"PretendTensor({self.host!r})"

    @classmethod
    def __torch_dispatch__(
        cls,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return _run(func, args, kwargs or {})

    __torch_function__ = torch._C._disabled_torch_function_impl


class _Device(TorchDispatchMode):
    """Makes the tensors that are asked for on the device."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return _run(func, args, kwargs or {})


class _Constants(TorchFunctionMode):
    """Copies constants of Python to the device in two steps, of which torch shows only one."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        device = (kwargs or {}).get("device")
        if func in (torch.tensor, torch.as_tensor) and device is not None:
            return func(*args, **{**(kwargs or {}), "device": _CPU}).to(device)
        return func(*args, **(kwargs or {}))


def is_available() -> bool:
    """Returns whether there is a compiler for the stub."""
    return shutil.which("g++") is not None


def build_stub(folder: Path) -> Path:
    """Compiles the device that does nothing; returns the library."""
    library, source = folder / "pretend_gpu.so", Path(__file__).with_suffix(".cpp")
    paths = [f"-I{_TORCH / 'include'}", f"-L{_TORCH / 'lib'}"]
    compiled = [
        "g++",
        "-std=c++20",
        "-O0",
        "-shared",
        "-fPIC",
        str(source),
        *paths,
        "-lc10",
        "-ltorch_cpu",
    ]
    subprocess.run([*compiled, "-o", str(library)], check=True)
    return library


@contextmanager
def pretended(stub: Path) -> Iterator[torch.device]:
    """Pretends that this process has a GPU, and gives its device.

    Args:
        stub: the library that :func:`build_stub` made.
    """
    torch.ops.load_library(stub)
    stream = Mock(device_type="cuda")
    answers: dict[str, Callable[..., Any]] = {
        "torch.cuda._lazy_init": lambda: None,
        "torch.cuda.current_device": lambda: 0,
        "torch.cuda.current_stream": lambda device=None: stream,
        "torch.cuda.device_count": lambda: 1,
        "torch.cuda.is_available": lambda: True,
        "torch.cuda.is_current_stream_capturing": lambda: False,
        "torch.cuda.set_device": lambda device: None,
        "mail_torchrec.distributed.process_group._backend": lambda device: "gloo",
        "torch.cuda.get_device_capability": lambda device=None: (9, 0),
        "torch.cuda.is_bf16_supported": lambda *_, **__: True,
        "torch.cuda.max_memory_allocated": lambda device=None: 0,
        "torch.cuda.stream": lambda stream: nullcontext(),
        "torch.cuda.synchronize": lambda device=None: None,
    }
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(patch(name, answer))
        # Else a parameter that is moved keeps its class, and with it its place on the CPU.
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, False)
        stack.enter_context(_Device())
        stack.enter_context(_Constants())
        yield DEVICE


def _run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Runs an operator on the host's values; its results are where a GPU would have them."""
    name, tensors = func.name().split(".")[0], list(_tensors([*args, *kwargs.values()]))
    is_on_device = any(isinstance(tensor, PretendTensor) for tensor in tensors)
    if is_on_device:
        _check_devices(name, tensors)
    if name == "aten::record_stream":
        return None
    given = {key: _mapped(value, _host) for key, value in kwargs.items()}
    if (target := kwargs.get("device")) is not None:
        is_on_device = torch.device(target).type == DEVICE.type
        given["device"] = _CPU
    returned = func(*_mapped(args, _host), **given)
    if not is_on_device:
        return returned
    written = _written(func, args, kwargs)
    return _mapped(returned, PretendTensor) if written is None else written


def _host(tensor: Tensor) -> Tensor:
    assert isinstance(tensor, PretendTensor) or tensor.device.type != DEVICE.type
    return tensor.host if isinstance(tensor, PretendTensor) else tensor


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _mapped(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """The same with the function's results in the place of tensors."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list | tuple):
        return type(value)([_mapped(part, function) for part in value])
    return value


def _check_devices(name: str, tensors: Iterable[Tensor]) -> None:
    """Checks that tensors of an operator of the device are all there.

    As on a GPU, a number of the host, a tensor without axes, goes with tensors of the device.
    """
    of_host = [one for one in tensors if one.dim() and not isinstance(one, PretendTensor)]
    if of_host and name not in _BETWEEN_DEVICES:
        found = ", ".join(f"{one.device} {list(one.shape)}" for one in tensors)
        raise MixedDevicesError(f"{name}: tensors of two devices: {found}")


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The arguments that an operator writes to and returns; None where it returns new tensors."""
    results = func._schema.returns
    if not any(one.alias_info is not None and one.alias_info.is_write for one in results):
        return None
    arguments = func._schema.arguments
    given = dict(zip((one.name for one in arguments), args, strict=False)) | dict(kwargs)
    written = [
        given[one.name]
        for one in arguments
        if one.alias_info is not None and one.alias_info.is_write
    ]
    if torch.Tag.inplace_view in func.tags:  # the shape is changed, which no kernel does
        with no_dispatch():
            func(*args, **kwargs)
    return written[0] if len(results) == 1 else tuple(written)
