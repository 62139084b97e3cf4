"""Towers by name, a user's own by import path, and the messages of failures."""

from pathlib import Path

import pytest
from torch import nn

from mail_torchrec.towers.dmr import DMR, DMRSettings
from mail_torchrec.towers.registry import (
    TOWERS,
    build_tower,
    needs_first_order,
    needs_match,
    tower_settings,
)
from tests.support.random_inputs import random_inputs, shapes

OWN_TOWER = """
import torch
from mail_torchrec.settings import Settings

class BiasSettings(Settings):
    start: float = 0.0

class Plain(torch.nn.Module):
    def __init__(self, options, shapes):
        super().__init__()
        self.options = options
    def forward(self, inputs):
        return inputs.numeric_BN.sum(1)

class Configured(Plain):
    Settings = BiasSettings

def function():
    return None
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_tower.py").write_text(OWN_TOWER)
    monkeypatch.syspath_prepend(tmp_path)
    return "own_tower"


def test_names_build_their_towers_with_defaults() -> None:
    for name, tower_class in TOWERS.items():
        assert type(build_tower(name, {}, shapes(dim=1))) is tower_class


def test_options_reach_the_tower() -> None:
    tower = build_tower("dmr", {"match_weight": 0.25, "hidden_dims": [9]}, shapes())
    assert isinstance(tower, DMR) and tower.settings == DMRSettings(
        match_weight=0.25, hidden_dims=(9,)
    )


def test_only_dmr_with_a_match_loss_needs_match() -> None:
    assert needs_match("dmr", {})
    assert not needs_match("dmr", {"match_weight": 0.0})
    assert not needs_match("base_dnn", {}) and not needs_match("emblr", {})


def test_wide_parts_need_first_order_weights() -> None:
    assert {name for name in TOWERS if needs_first_order(name, {})} == {"wide_deep", "deepfm"}


def test_a_users_tower_gets_its_options(own: str) -> None:
    tower = build_tower(f"{own}:Plain", {"anything": 1}, shapes())
    assert tower.options == {"anything": 1}
    assert tower(random_inputs(shapes())).shape == (7,)
    assert not needs_match(f"{own}:Plain", {})


def test_a_users_tower_with_settings_gets_them_validated(own: str) -> None:
    tower = build_tower(f"{own}:Configured", {"start": 2}, shapes())
    assert isinstance(tower, nn.Module) and tower.options.start == 2.0
    with pytest.raises(
        ValueError,
        match=r"tower 'own_tower:Configured': unknown option 'stop'; its options are: start",
    ):
        build_tower(f"{own}:Configured", {"stop": 2}, shapes())


def test_unknown_name() -> None:
    with pytest.raises(
        ValueError,
        match=(
            r"unknown tower 'dnr'; known are emblr, base_dnn, wide_deep, deepfm, din, dmr, "
            r"or name your own as package.module:ClassName"
        ),
    ):
        build_tower("dnr", {}, shapes())


def test_import_path_that_does_not_import() -> None:
    with pytest.raises(
        ValueError,
        match=(
            r"tower 'no_such.place:Tower': cannot import 'no_such.place' "
            r"\(ModuleNotFoundError.*PYTHONPATH"
        ),
    ):
        build_tower("no_such.place:Tower", {}, shapes())


def test_module_that_raises_on_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_tower.py").write_text("raise RuntimeError('half written')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ValueError, match=r"cannot import 'broken_tower' \(RuntimeError: half written\)"
    ):
        build_tower("broken_tower:Tower", {}, shapes())


def test_missing_attribute(own: str) -> None:
    with pytest.raises(
        ValueError, match=r"'own_tower' has no attribute 'Tower'; correct the name behind the colon"
    ):
        build_tower(f"{own}:Tower", {}, shapes())


def test_not_a_module(own: str) -> None:
    with pytest.raises(
        ValueError,
        match=r"'function' should be a class derived from torch.nn.Module, received <function",
    ):
        build_tower(f"{own}:function", {}, shapes())


def test_unknown_option() -> None:
    with pytest.raises(
        ValueError,
        match=r"tower 'base_dnn': unknown option 'depth'; its options are: hidden_dims, dropout$",
    ):
        tower_settings("base_dnn", {"depth": 3})


def test_option_out_of_range() -> None:
    with pytest.raises(
        ValueError, match=r"tower 'base_dnn': option 'dropout': .*less than 1, received 2"
    ):
        tower_settings("base_dnn", {"dropout": 2})


def test_emblr_has_no_options() -> None:
    with pytest.raises(
        ValueError, match=r"tower 'emblr': unknown option 'dropout'; its options are: none"
    ):
        tower_settings("emblr", {"dropout": 0.1})
