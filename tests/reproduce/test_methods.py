"""Each method's changes of a configuration."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from mail_torchrec.config import load_config, preset_overrides
from mail_torchrec.reproduce.methods.definitions import METHODS, TABLE_2, TABLE_3
from mail_torchrec.reproduce.methods.method import CROSSES, TOWERS, Method
from mail_torchrec.reproduce.methods.resolution import resolve_config
from mail_torchrec.towers.attribute_crosses import AttributeCrossesSettings
from tests.support.small_rows import config_tree

_SWITCHES = ("mixture", "ranking loss", "flag + dropout", "contrastive")
USER_METHODS = {name: method for name, method in METHODS.items() if not method.is_for_items}
_REMEDIES = {"CVAR": "cvar", "MWUF": "mwuf"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The configuration of a user, whose tower is DMR."""
    tree = config_tree(tmp_path, data={"root": str(tmp_path), "cold_start": {"hide_share": 0.4}})
    tree["schema"] = tree["schema"] | {"tables": tree["schema"]["tables"] | {"hour": {"dim": 8}}}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path / "small.yaml"


def resolved(name: str, path: Path, *overrides: str, seed: int = 3) -> dict[str, Any]:
    tree: dict[str, Any] = resolve_config(METHODS[name], path, overrides, seed).model_dump()
    return tree


def test_table_2_begins_with_the_papers_methods_in_its_order() -> None:
    assert TABLE_2[:7] == ["Emblr", "LLAE", "BaseDNN", "MetaEmb", "MAIL-BaseDNN", "DMR", "MAIL-DMR"]


def test_every_method_has_its_base_and_its_oracle_in_table_2_and_a_folder_of_its_own() -> None:
    for method in USER_METHODS.values():
        assert (
            method.tower in TABLE_2
            and method.oracle in TABLE_2
            and method.base in (None, method.tower)
        )
    assert [name for name in USER_METHODS if METHODS[name].base is None] == [
        "Emblr",
        "BaseDNN",
        "DMR",
        "DeepFM",
        "DIN",
        "Wide&Deep",
    ]
    towers = ("BaseDNN", "DIN")
    assert set(USER_METHODS) - set(TABLE_2) - set(TABLE_3) == {
        *(f"{tower} + {name}" for tower in towers for name in _REMEDIES),
        *(f"MAIL-{tower} + {name}" for tower in towers for name in _SWITCHES),
        *("BaseDNN + crosses + DropoutNet", "MAIL-BaseDNN + crosses tuned"),
        *("BaseDNN + own tower", "BaseDNN + crosses + own tower", "DMR + own tower"),
    }
    assert len({method.file_name.lower() for method in USER_METHODS.values()}) == len(USER_METHODS)
    assert (
        METHODS["MAIL-Wide&Deep"].file_name == "MAIL-Wide-Deep"
        and METHODS["BaseDNN + mean fill"].file_name == "BaseDNN-mean-fill"
    )


def test_a_method_is_its_tower_its_cold_start_and_the_rest_of_the_users_configuration(
    path: Path,
) -> None:
    mail, plain, oracle, none = (
        resolved(name, path, "train.epochs=3")
        for name in ("MAIL-DMR", "DMR", "DMR oracle", "MAIL-None")
    )
    assert (
        mail["name"],
        mail["train"]["seed"],
        mail["train"]["save_predictions"],
        mail["train"]["epochs"],
    ) == ("MAIL-DMR", 3, True, 3)
    assert (
        mail["model"]["zero_shot"]["variant"] == "full"
        and mail["model"]["zero_shot"]["attention_dim"] == 8
    )
    assert plain["model"]["zero_shot"] is None and not plain["data"]["cold_start"]["oracle"]
    assert oracle["model"] == plain["model"] and oracle["data"]["cold_start"]["oracle"]
    assert none["model"]["zero_shot"]["variant"] == "none" and none["model"]["tower"] == "base_dnn"


def test_switches_beyond_the_paper_are_a_mails_and_no_other_methods(path: Path) -> None:
    kept = ("model.virtual_flag=true", "model.mixing_strength=3")
    for name in ("BaseDNN", "DIN + mean fill", "BaseDNN + DropoutNet"):
        model = resolved(name, path, *kept)["model"]
        assert "virtual_flag" not in model and "mixing_strength" not in model, name
    found = {name: resolved(f"MAIL-DIN + {name}", path)["model"] for name in _SWITCHES}
    assert found["mixture"]["zero_shot"]["reconstruction_target"] == "mixture"
    assert found["ranking loss"]["zero_shot"]["ranking_weight"] == 1
    assert found["contrastive"]["zero_shot"]["alignment"] == "contrastive"
    assert found["flag + dropout"]["virtual_flag"]
    assert found["flag + dropout"]["behaviour_dropout"] == 0.5
    assert all(model["tower"] == "din" for model in found.values())


def test_tower_options_stay_with_the_tower_of_the_configuration(path: Path) -> None:
    assert resolved("MAIL-DMR", path)["model"]["tower_options"]["num_negatives"] == 20
    assert resolved("BaseDNN", path)["model"]["tower_options"] == {}


def test_baselines_stand_in_the_zero_shot_towers_place_and_no_other_method_keeps_the_users(
    path: Path,
) -> None:
    tree = yaml.safe_load(path.read_text())
    tree["model"] |= {"zero_shot": None, "baseline": {"name": "llae", "rank": 3}}
    path.write_text(yaml.safe_dump(tree))
    fills = {name: "mean_fill" for name in USER_METHODS if name.endswith(" + mean fill")}
    assert "BaseDNN + mean fill" in fills
    remedies = {
        f"{t} + {title}": _REMEDIES[title] for title in _REMEDIES for t in ("BaseDNN", "DIN")
    }
    baselines = fills | {"LLAE": "llae", "MetaEmb": "meta_emb"} | remedies
    for name, baseline in baselines.items():
        model = resolved(name, path)["model"]
        assert (model["baseline"]["name"], model["zero_shot"]) == (baseline, None)
        assert model["baseline"].get("rank") in (None, 8)
    for method in set(USER_METHODS) - set(baselines):
        assert resolved(method, path)["model"]["baseline"] is None, method


def test_metaemb_and_its_control_have_the_users_id_and_differ_by_the_generator_alone(
    path: Path,
) -> None:
    found, control, plain = (
        resolve_config(METHODS[name], path, (), 1)
        for name in ("MetaEmb", "BaseDNN + user id", "BaseDNN")
    )
    assert (
        found.schema_ == control.schema_ and found.data == control.data and found.data.group_by_user
    )
    [name] = set(found.schema_.columns) - set(plain.schema_.columns)
    assert (
        found.schema_.columns[name].group == "attribute"
        and found.schema_.file_column(name) == "user"
    )
    assert control.model == plain.model and found.model.baseline is not None
    assert found.model.model_copy(update={"baseline": None}) == plain.model


def test_a_schema_that_has_the_users_id_keeps_it(path: Path) -> None:
    with_id = "schema.columns.uid={group: attribute, column: user, table: users}"
    assert (
        resolve_config(METHODS["MetaEmb"], path, (with_id,), 1).schema_
        == resolve_config(METHODS["BaseDNN"], path, (with_id,), 1).schema_
    )


def test_emblr_has_one_weight_an_id(path: Path) -> None:
    config = resolve_config(METHODS["Emblr"], path, (), 1)
    assert {config.schema_.table(name).dim for name in config.schema_.table_names} == {1}


def test_a_plain_tower_is_plain_whatever_remedies_the_configuration_has(path: Path) -> None:
    tree = yaml.safe_load(path.read_text())
    tree["model"] |= {"cold_loss_weight": 1.0, "new_user_tower": "own", "behaviour_dropout": 0.2}
    path.write_text(yaml.safe_dump(tree))
    for method in ("BaseDNN", "BaseDNN oracle", "LLAE", "MAIL-BaseDNN"):
        model = resolved(method, path)["model"]
        expected = (1.0, "own", 0.2) if method == "MAIL-BaseDNN" else (0.0, "shared", 0.0)
        assert (
            model["cold_loss_weight"],
            model["new_user_tower"],
            model["behaviour_dropout"],
        ) == expected, method


@pytest.mark.parametrize(
    "override",
    [
        "name=mine",
        "train.seed=4",
        "model.tower=dmr",
        "model.baseline=null",
        "data.cold_start.oracle=true",
    ],
)
def test_overriding_what_the_methods_set_is_refused(path: Path, override: str) -> None:
    with pytest.raises(
        ValueError,
        match=rf"'{override.partition('=')[0]}' is what the methods themselves set; leave it out",
    ):
        resolved("DMR", path, override)


def test_a_preset_is_a_list_of_overrides_on_top(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wide.yaml").write_text(
        "model: {zero_shot: {padding: masked, encoder_dims: [4, 2]}}\ntrain: {epochs: 2}\n"
    )
    monkeypatch.setattr("mail_torchrec.config._PRESETS", tmp_path)
    assert preset_overrides("wide") == [
        'model.zero_shot.padding="masked"', "model.zero_shot.encoder_dims=[4, 2]", "train.epochs=2"
    ]  # fmt: skip
    config = resolve_config(
        Method("wide", "DMR", ("model.zero_shot.variant=full",), preset="wide"),
        path,
        ("train.epochs=5",),
        1,
    )
    assert config.model.zero_shot is not None
    assert (
        config.model.zero_shot.encoder_dims,
        config.model.zero_shot.padding,
        config.train.epochs,
    ) == ((4, 2), "masked", 2)


def test_a_missing_preset_is_named_with_those_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wide.yaml").write_text("{}")
    monkeypatch.setattr("mail_torchrec.config._PRESETS", tmp_path)
    with pytest.raises(ValueError, match="no preset 'narrow'; there are: wide"):
        preset_overrides("narrow")


def test_the_preset_of_a_tower_of_new_users_own_is_the_method_of_that_name(path: Path) -> None:
    method = resolve_config(METHODS["DMR + own tower"], path, (), 1)
    preset = load_config(path, preset_overrides("own_tower"))
    assert preset.model == method.model and preset.model.zero_shot is None


def test_titles_of_towers_are_names_of_their_own() -> None:
    plain = [name for title, name in TOWERS.items() if CROSSES not in title]
    assert len(set(plain)) == len(plain)


def test_products_are_those_of_methods_that_name_them_with_the_configurations_options(
    path: Path,
) -> None:
    crossed = {name for name in USER_METHODS if name.endswith("+ crosses") or "+ crosses " in name}
    assert {"BaseDNN + crosses", "MAIL-BaseDNN + crosses", "DIN + crosses oracle"} < crossed
    for name in USER_METHODS:
        own = "model.attribute_crosses={rank: 7}"
        found = resolve_config(METHODS[name], path, (own,), 1).model.attribute_crosses
        assert (found and found.rank) == (7 if name in crossed else None), name
    found = resolve_config(METHODS["DIN + crosses"], path, (), 1).model.attribute_crosses
    assert found == AttributeCrossesSettings()
    plain, mail, oracle = (METHODS[name] for name in (
        "BaseDNN + crosses", "MAIL-BaseDNN + crosses", "BaseDNN + crosses oracle"
    ))  # fmt: skip
    assert (plain.base, plain.oracle) == ("BaseDNN", "BaseDNN oracle")
    assert (mail.base, mail.oracle) == ("BaseDNN + crosses", "BaseDNN + crosses oracle")
    assert oracle.is_oracle and METHODS["MAIL-BaseDNN"].controls[-1] == "BaseDNN + crosses"
