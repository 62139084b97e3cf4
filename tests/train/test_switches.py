"""Switches for speed: a step with each is a step without, to rounding; and compiled towers are compiled once."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from mail_torchrec.config import Config
from mail_torchrec.data.encoders import fit_encoders
from mail_torchrec.data.reader import Reader, Share
from mail_torchrec.data.source import Source
from mail_torchrec.model import Outputs
from mail_torchrec.train.assembly import assemble
from mail_torchrec.train.precision import has_bfloat16
from mail_torchrec.train.runtime import process_group
from mail_torchrec.train.trainer import samplers
from tests.small_rows import config_tree, write_rows

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder / "train" / "a.parquet", 300, seed=1)
    return folder


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with process_group("cpu"):
        yield


def steps_of(root: Path, train: dict[str, Any], **sections: dict[str, Any]) -> tuple[list[Outputs], dict[str, torch.Tensor]]:
    """What the steps of an epoch returned, and the weights behind them."""
    config = Config.model_validate(config_tree(root, train=train, **sections))
    source = Source(config.data.path("train"), config.schema_)
    encoders = fit_encoders(source, config.schema_, config.data.cold_start)
    assembled = assemble(config, encoders, CPU)
    reader = Reader(
        source, config.schema_, encoders, assembled.lookups, config.data, share=Share(), batch_size=32, shuffle=True, seed=1,
        samplers=samplers(config, encoders, assembled.lookups),
    )  # fmt: skip
    batches, found = iter(reader), []
    for _ in range(len(reader)):
        found.append(assembled.pipeline.progress(batches))
    return found, {name: value for name, value in assembled.model.state_dict().items() if name.startswith("towers.")}


def assert_close(found: list[Outputs], expected: list[Outputs], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.losses.keys() == other.losses.keys()
        for name, value in other.losses.items():
            torch.testing.assert_close(
                one.losses[name], value, rtol=tolerance, atol=tolerance / 100, msg=lambda text, name=name: f"{name}: {text}"
            )  # type: ignore[misc]


@pytest.mark.parametrize("grouped", [False, True])
def test_compiled_towers_train_alike_and_are_compiled_once(root: Path, grouped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of users, of old and of new ones change from step to step."""
    data = {"root": str(root), "group_by_user": grouped}
    expected, weights = steps_of(root, {}, data=data)
    torch._dynamo.reset()
    compiled: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    found, found_weights = steps_of(root, {"compile": True}, data=data)
    assert len({int(output.batch.is_new_U.sum()) for output in found}) > 2
    assert_close(found, expected, 1e-4)
    for name, value in weights.items():
        torch.testing.assert_close(found_weights[name], value, rtol=1e-3, atol=1e-4)
    assert len(compiled) == 3, "the ranking tower, the losses of the zero-shot tower and its virtual behaviours"


def test_bfloat16_is_near_float32_and_keeps_weights_losses_and_evaluation(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected, _ = steps_of(root, {})
    found, weights = steps_of(root, {"precision": "bfloat16"})
    assert_close(found, expected, 5e-2)
    assert any(not torch.equal(one.losses["L_rt"], other.losses["L_rt"]) for one, other in zip(found, expected, strict=True))
    assert {value.dtype for output in found for value in output.losses.values()} == {torch.float32}
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.float32}
    assert ("it is emulated" in capsys.readouterr().err) == (not has_bfloat16(CPU))


def test_tf32_is_refused_on_a_cpu(root: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.precision: tf32 is a precision of GPUs"):
        steps_of(root, {"precision": "tf32"})
