"""Optimizer groups: every trainable parameter in exactly one, each with its name and optimizer."""

from pathlib import Path

import pytest
import torch
from torch import nn

from mail_torchrec.optim.assignment import FUSED, dense_parameters
from mail_torchrec.optim.building import build_optimizer_groups
from mail_torchrec.train.settings import TrainSettings
from mail_torchrec.train.state import optimizer_state
from tests.model.test_wall import build

pytestmark = pytest.mark.usefixtures("single_process")


@pytest.mark.parametrize("sharded", [True, False])
def test_groups_are_one_list_which_checkpoints_go_over(small_root: Path, sharded: bool) -> None:
    assembled, _ = build(small_root, sharding={"enabled": sharded})
    groups = list(assembled.optimizer)
    names = ["fused", "ranking", "zero_shot"] if sharded else ["ranking", "zero_shot", "tables"]
    assert [group.name for group in groups] == names
    assert [group.name for group in groups if group.is_fused] == ["fused"] * sharded
    expected = {
        f"optimizer.{group.name}.{parameter}.{state}"
        for group in groups
        for parameter, states in group.state.items()
        for state in states
    }
    assert expected and optimizer_state(assembled).keys() == expected
    trained = [name for group in groups for name in group.parameters]
    assert len(set(trained)) == len(trained)
    assert set(trained) == {name for name, _ in assembled.model.named_parameters()}
    assert (FUSED in assembled.optimizer.groups) is sharded


class UnknownModule(nn.Module):
    """A model with a module that no optimizer group names."""

    def __init__(self) -> None:
        super().__init__()
        self.towers = nn.ModuleDict(
            {"ranking": nn.Linear(2, 1, bias=False), "calibration": nn.Linear(1, 1, bias=False)}
        )


def test_a_parameter_of_an_unknown_module_is_named_with_the_known_ones() -> None:
    model = UnknownModule()
    with pytest.raises(
        ValueError,
        match=r"parameter 'towers\.calibration\.weight' should belong to a module of an optimizer "
        r"group \(towers\.zero_shot\., .*towers\.ranking\., .*pooled_tables\., .*\), received none",
    ):
        dense_parameters(model, None)
    model.towers["calibration"].requires_grad_(False)
    groups = build_optimizer_groups(model, TrainSettings(), zero_shot_scale=1.0, fused=None)
    assert [group.name for group in groups] == ["ranking"]


def test_building_groups_moves_no_weight() -> None:
    model = UnknownModule()
    model.towers["calibration"].requires_grad_(False)
    before = model.towers["ranking"].weight.clone()
    [group] = build_optimizer_groups(model, TrainSettings(), zero_shot_scale=1.0, fused=None)
    assert torch.equal(model.towers["ranking"].weight, before)
    assert set(group.state["towers.ranking.weight"]) == {"step", "exp_avg", "exp_avg_sq"}
