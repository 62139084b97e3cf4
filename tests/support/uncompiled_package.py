"""A stand-in for AOTInductor that compiles nothing: all around the C++ compiler is as ever."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram


def without_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a package hold the traced program, without its weights, in the place of machine code."""
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", _package)
    monkeypatch.setattr(torch._inductor, "aoti_load_package", _UncompiledPackage)


def _package(
    program: ExportedProgram, *, package_path: str, inductor_configs: Mapping[str, Any]
) -> None:
    assert inductor_configs == {"aot_inductor.package_constants_in_so": False}
    # AOTInductor's first pass refuses a trace in which another exporter left such sizes.
    values = [node.meta.get("val") for node in program.graph.nodes]
    sizes = next(value.fake_mode for value in values if isinstance(value, FakeTensor)).shape_env
    assert sizes is not None and not sizes.pending_fresh_unbacked_symbols
    torch.export.save(program, package_path)


class _UncompiledPackage:
    """Has the methods of a loaded package that the trainer calls."""

    def __init__(self, path: str) -> None:
        self._module = torch.export.load(path).module()
        for value in self._module.state_dict().values():
            value.zero_()  # those of the artefact's files have to come

    def get_constant_fqns(self) -> list[str]:
        """Returns the names of the weights."""
        return list(self._module.state_dict())

    def load_constants(
        self, weights: Mapping[str, Tensor], *, check_full_update: bool, user_managed: bool
    ) -> None:
        """Takes all weights, without a copy."""
        assert check_full_update and user_managed
        self._module.load_state_dict(weights, strict=True, assign=True)

    def __call__(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Returns the outputs."""
        return tuple(self._module(*values))
