"""Switches for speed keep a step, to rounding or on average; towers are compiled once."""

import math
import platform
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from mail_torchrec.model.precision import has_native_bfloat16
from mail_torchrec.model.step import StepOutputs
from tests.model.test_wall import build

pytestmark = pytest.mark.usefixtures("single_process")
CPU = torch.device("cpu")


def steps_of(
    small_root: Path, train: dict[str, Any], **sections: dict[str, Any]
) -> tuple[list[StepOutputs], dict[str, torch.Tensor]]:
    """What some steps returned, and the weights behind them."""
    assembled, batches = build(small_root, train=train, **sections)
    found = [assembled.pipeline.progress(batches) for _ in range(10)]
    return found, {
        name: value
        for name, value in assembled.model.state_dict().items()
        if name.startswith("towers.")
    }


def assert_close(found: list[StepOutputs], expected: list[StepOutputs], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.losses.keys() == other.losses.keys()
        for name, value in other.losses.items():
            torch.testing.assert_close(
                one.losses[name],
                value,
                rtol=tolerance,
                atol=tolerance / 100,
                msg=lambda text, name=name: f"{name}: {text}",
            )  # type: ignore[misc]


@pytest.mark.parametrize("grouped", [pytest.param(False, marks=pytest.mark.long), True])
def test_compiled_towers_train_alike_and_are_compiled_once(
    small_root: Path, grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers of users, of old and of new ones change from step to step."""
    data = {"root": str(small_root), "group_by_user": grouped}
    expected, weights = steps_of(small_root, {}, data=data)
    torch._dynamo.reset()
    compiled: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    found, found_weights = steps_of(small_root, {"compile": True}, data=data)
    assert len({int(output.batch.is_cold_U.sum()) for output in found}) > 2
    assert_close(found, expected, 1e-4)
    for name, value in weights.items():
        torch.testing.assert_close(found_weights[name], value, rtol=1e-3, atol=1e-4)
    assert len(compiled) == 3, (
        "the ranking tower, the losses of the zero-shot tower and its virtual behaviours"
    )


def test_bfloat16_is_near_float32_and_keeps_weights_losses_and_evaluation(
    small_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, _ = steps_of(small_root, {})
    found, weights = steps_of(small_root, {"precision": "bfloat16"})
    assert_close(found, expected, 5e-2)
    assert any(
        not torch.equal(one.losses["L_rt"], other.losses["L_rt"])
        for one, other in zip(found, expected, strict=True)
    )
    assert {value.dtype for output in found for value in output.losses.values()} == {torch.float32}
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {
        torch.float32
    }
    assert ("it is emulated" in capsys.readouterr().err) == (not has_native_bfloat16(CPU))


def test_tf32_is_refused_on_a_cpu(small_root: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.precision: tf32 is a precision of GPUs"):
        steps_of(small_root, {"precision": "tf32"})


def test_losses_of_a_sample_of_old_users_are_on_average_those_of_all(small_root: Path) -> None:
    assembled, batches = build(small_root, sharding={"enabled": False})
    batch, tower = next(batches), assembled.model.towers.zero_shot
    num_old = int((~batch.is_cold_B).sum())
    expected = assembled.model(batch)[1].losses
    tower.settings = tower.settings.model_copy(update={"loss_sample_share": 0.3})
    sizes: set[int] = set()
    tower.attribute_encoder.register_forward_hook(
        lambda *call: sizes.add(len(call[2])) if torch.is_grad_enabled() else None
    )
    drawn = [assembled.model(batch)[1].losses for _ in range(400)]
    assert sizes == {math.ceil(0.3 * num_old)} and sizes != {num_old}
    assert torch.equal(drawn[0]["L_rt"], expected["L_rt"])
    for name in ("L_a", "L_v"):
        values = torch.stack([losses[name] for losses in drawn]).double()
        error = values.std() / len(values) ** 0.5
        assert error > 0 and (values.mean() - expected[name]).abs() < 4 * error


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_a_step_s_memory_is_not_asked_of_the_system_again() -> None:
    """In a process of its own: it holds for all of it."""
    code = """
import resource, torch
from mail_torchrec.utils.host_memory import keep_freed_memory
def faults(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(size)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
assert min(faults(2**23) for _ in range(3)) > 100
keep_freed_memory()
faults(2**24)
# each fits into what the one before left
found = [faults(2**23 - step * 2**16) for step in range(5)]
assert max(found) < 100, found
"""
    subprocess.run([sys.executable, "-c", code], check=True)
