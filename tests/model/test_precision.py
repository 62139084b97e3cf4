"""The type of the towers' arithmetic, apart from the process-wide mode of matrix products."""

import pytest
import torch

from mail_torchrec.model.precision import set_matmul_precision, tower_dtype

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_computing_the_type_changes_no_state(
    precision: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changed: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", changed.append)
    expected = torch.bfloat16 if precision == "bfloat16" else torch.float32
    assert tower_dtype(precision, CUDA) is expected
    assert changed == [] and capsys.readouterr().err == ""
    if precision != "tf32":
        assert tower_dtype(precision, CPU) is expected


def test_the_mode_is_set_for_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    changed: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", changed.append)
    for precision, device in (("tf32", CUDA), ("float32", CUDA), ("float32", CPU)):
        set_matmul_precision(precision, device)
    assert changed == ["high", "highest"]
