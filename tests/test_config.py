"""The configuration: file, overrides, errors, and back to a file."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from mail_torchrec.config import dump_config, load_config, parse_settings
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.settings import DataSettings
from mail_torchrec.data.source import Source
from tests.support.plain import TREE

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "launch" / "configs").glob("*.yaml"))
KUAIRAND = ROOT.parent / "shared" / "datasets" / "kuairand-pure"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tree: dict[str, Any] = {
        "data": {"root": "rows"},
        "schema": TREE,
        "model": {"tower": "base_dnn"},
        "train": {"epochs": 2},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return tmp_path / "config.yaml"


def test_the_file_then_the_overrides_then_the_defaults(file: Path) -> None:
    overrides = [
        "train.batch_size=4096",
        "train.learning_rate=1e-3",
        "train.betas=[0.5, 0.9]",
        "model.zero_shot=null",
        "name=A run",
    ]
    config = load_config(file, overrides)
    assert (config.train.epochs, config.train.batch_size, config.train.learning_rate) == (
        2,
        4096,
        0.001,
    )
    assert (config.train.betas, config.model.zero_shot, config.name) == ((0.5, 0.9), None, "A run")
    assert config.train.eval_batch_size == load_config(file, []).train.eval_batch_size == 4096
    assert list(config.schema_.columns) == list(TREE["columns"])


def test_an_override_makes_the_sections_it_needs(file: Path) -> None:
    file.write_text(file.read_text() + "sharding:\n")
    config = load_config(
        file,
        [
            "data.cold_start.hide_share=0.4",
            "schema.tables.hour.min_count=3",
            "train.tables.name=sgd",
            "sharding.enabled=false",
        ],
    )
    assert config.data.cold_start.hide_share == 0.4
    assert config.schema_.table("hour").min_count == 3
    assert config.train.tables.name == "sgd"
    assert config.sharding.enabled is False


def test_null_on_the_command_line_takes_an_entry_out_of_a_mapping(file: Path) -> None:
    text = file.read_text() + "sharding: {constraints: {item: {}}, pooling_factors: {tags: 2}}\n"
    file.write_text(text)
    entries = {
        "schema.columns.income": lambda config: config.schema_.columns,
        "sharding.constraints.item": lambda config: config.sharding.constraints,
        "sharding.pooling_factors.tags": lambda config: config.sharding.pooling_factors,
    }
    for key, mapping in entries.items():
        name = key.rpartition(".")[2]
        assert name in mapping(load_config(file, []))
        assert name not in mapping(load_config(file, [f"{key}=null"]))
        assert name not in mapping(load_config(file, [f"{key}="]))
    options = load_config(file, ["model.tower_options={a: 1}", "model.tower_options.a=null"])
    assert options.model.tower_options == {"a": None}  # where null may stand, it is a value


def test_null_takes_nothing_out_that_is_not_there(file: Path) -> None:
    with pytest.raises(
        ValueError, match=r"'schema\.columns' has no 'incom' to take out; it has user, clicked, age"
    ):
        load_config(file, ["schema.columns.incom=null"])


def test_null_in_a_file_is_no_column(file: Path) -> None:
    tree = yaml.safe_load(file.read_text())
    tree["schema"]["columns"]["income"] = None
    file.write_text(yaml.safe_dump(tree))
    with pytest.raises(ValueError, match=r"schema\.columns\.income: Input .* received None"):
        load_config(file, [])


@pytest.mark.parametrize("key", [True, 7])
def test_a_name_that_yaml_takes_for_something_else_should_be_in_quotes(
    file: Path, key: object
) -> None:
    tree = yaml.safe_load(file.read_text())
    tree["schema"]["columns"][key] = {"group": "context"}
    file.write_text(yaml.safe_dump(tree))
    with pytest.raises(
        ValueError,
        match=rf"\n  schema\.columns: a name should be text, received {key}.*; put it in q",
    ):
        load_config(file, [])


def test_an_override_does_not_reach_through_an_alias(file: Path) -> None:
    tree, shared = yaml.safe_load(file.read_text()), {"min_count": 2}
    tree["schema"]["tables"] = {"hour": shared, "age": shared}
    file.write_text(yaml.safe_dump(tree))
    assert "*id" in file.read_text()
    schema = load_config(file, ["schema.tables.hour.min_count=5"]).schema_
    assert (schema.table("hour").min_count, schema.table("age").min_count) == (5, 2)


@pytest.mark.parametrize(("cores", "readers"), [(1, 1), (2, 1), (6, 5), (64, 8)])
def test_on_a_gpu_processes_read_unless_their_number_is_set(
    file: Path, cores: int, readers: int
) -> None:
    unset, none = load_config(file, []), load_config(file, ["data.num_workers=0"])
    assert unset.on_device("cuda", cores).data.num_workers == readers
    assert unset.on_device("cpu", cores) == unset == none
    assert none.on_device("cuda", cores) == none
    assert unset.on_device("cuda", cores).schema_ is unset.schema_


def test_what_is_dumped_is_loaded_equal(file: Path, tmp_path: Path) -> None:
    config = load_config(
        file,
        [
            "model.tower_options={hidden_dims: [8, 4]}",
            "data.root=s3://bucket/日本",
            "train.learning_rate=1e-5",
        ],
    )
    again = tmp_path / "again.yaml"
    again.write_text(dump_config(config))
    assert load_config(again, []) == config
    assert list(load_config(again, []).schema_.columns) == list(config.schema_.columns)


UNKNOWN = {
    "trian.epochs=1": r"trian: unknown key; known here: name, data, schema, model, sharding, train",
    "train.batchsize=1": r"train\.batchsize: unknown key; known here: .*epochs, batch_size, ",
    "data.cold_start.share=1": (
        r"data\.cold_start\.share: unknown key; known here: hide_share, train_share"
    ),
    "schema.columns.age.vocabulary=1": (
        r"schema\.columns\.age\.vocabulary: unknown key; known here: group, kind, column, "
        r"table, "
    ),
    "schema.tables.age.size=1": (
        r"schema\.tables\.age\.size: unknown key; known here: ids, rows, min_count, "
    ),
    "model.zero_shot.colour=1": r"model\.zero_shot\.colour: unknown key; known here: variant, ",
    "model.baseline={name: llae, colour: 1}": (
        r"model\.baseline\.colour: unknown key; known here: name, weight, balance, "
    ),
    "model.baseline={name: meta_emb, colour: 1}": (
        r"model\.baseline\.colour: unknown key; known here: name, field, alpha, "
    ),
}


@pytest.mark.parametrize("override", UNKNOWN)
def test_an_unknown_key_is_refused_with_the_known_ones(file: Path, override: str) -> None:
    with pytest.raises(
        ValueError, match=rf"config\.yaml \(with overrides\) does not fit:\n  {UNKNOWN[override]}"
    ):
        load_config(file, [override])


WRONG = {
    "train.batch_size=many": r"train\.batch_size: Input should be a valid integer.*received 'many'",
    "train.batch_size=1.5": r"train\.batch_size: Input should be a valid integer.*received 1\.5",
    "train.epochs=0": r"train\.epochs: Input should be greater than or equal to 1, received 0",
    "train.learning_rate=.nan": r"train\.learning_rate: Input should be .*, received nan",
    "train.device=tpu": r"train\.device: Input should be 'auto', 'cpu' or 'cuda', received 'tpu'",
    "data.cold_start.hide_share=1.5": (
        r"data\.cold_start\.hide_share: Input should be less than or equal to 1, received 1\.5"
    ),
    "schema.columns.age.group=atribute": (
        r"schema\.columns\.age\.group: Input should be 'attribute', .*received 'atribute'"
    ),
    "train=5": r"train: Input should be a valid dictionary.*received 5",
    "model.baseline={name: llae, rank: 0}": (
        r"model\.baseline\.rank: Input should be greater than 0, received 0"
    ),
    "model.baseline={name: lae}": (
        r"model\.baseline: 'name' should be one of mean_fill, llae, meta_emb, cvar, mwuf, received "
        r"\{'name': 'lae'\}"
    ),
    "model.baseline={rank: 3}": (
        r"model\.baseline: 'name' should be one of mean_fill, llae, meta_emb, cvar, mwuf, received "
        r"\{'rank': 3\}"
    ),
    "model.baseline=llae": r"model\.baseline: Input should be a valid dictionary.*received 'llae'",
    "data=null": r"data: Input should be a valid dictionary.*received None",
}


@pytest.mark.parametrize("override", WRONG)
def test_a_wrong_value_is_named_with_its_place(file: Path, override: str) -> None:
    with pytest.raises(ValueError, match=rf"does not fit:\n  {WRONG[override]}"):
        load_config(file, [override])


def test_every_fault_is_listed(file: Path) -> None:
    with pytest.raises(ValueError, match=r"(?s)train\.epochs: .*train\.sped: unknown key"):
        load_config(file, ["train.epochs=x", "train.sped=1"])


def test_a_rule_of_the_schema_is_told_with_its_place(file: Path) -> None:
    with pytest.raises(
        ValueError,
        match=(
            r"\n  schema: schema\.columns: exactly one column must have group 'label', found "
            r"none"
        ),
    ):
        load_config(file, ["schema.columns.clicked.group=context"])


def test_a_missing_section_is_named(file: Path) -> None:
    file.write_text("name: x\n")
    with pytest.raises(ValueError, match=r"(?s)  data: Field required.*  schema: Field required"):
        load_config(file, [])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs", "an override should read section.key=value, received 'train.epochs'"),
        ("=3", "an override should read section.key=value, received '=3'"),
        (
            "train.epochs.first=1",
            r"override 'train\.epochs\.first=1': 'epochs' holds the value 2 and no keys",
        ),
        ("train.betas=[1", r"override 'train\.betas=\[1': the value is not valid YAML"),
        (
            "model={zero_shot: {variant: full, variant: full}}",
            r"override 'model=.*': .* key 'model\.zero_shot\.variant' should stand once, received "
            r"it twice on line 1 \(columns 14 and 29\)",
        ),
    ],
)
def test_an_override_that_cannot_be_applied(file: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(file, [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", r"config\.yaml is not valid YAML: (?s:.*)line 1"),
        (
            "train: {epochs: 1}\nname: x\ntrain: {epochs: 2}\n",
            r"config\.yaml is not valid YAML: key 'train' should stand once, received it on lines "
            r"1 and 3",
        ),
        (
            "- 1\n",
            r"config\.yaml should hold sections \(data, schema, \.\.\.\), received list",
        ),
        ("", r"config\.yaml should hold sections .*, received NoneType"),
        (
            "a: !!python/object/apply:os.getcwd []",
            r"config\.yaml is not valid YAML: .*could not determine a constructor",
        ),
    ],
)
def test_a_file_that_is_no_configuration(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_config(file, [])


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(
            ValueError, match=rf"no configuration at '{path}' .*launch/configs/ holds examples"
        ):
            load_config(path, [])


def test_one_section_from_overrides_alone() -> None:
    assert parse_settings(
        DataSettings, ["root=x", "cold_start.hide_share=0.4"]
    ) == DataSettings.model_validate({"root": "x", "cold_start": {"hide_share": 0.4}})
    with pytest.raises(
        ValueError,
        match="the command line does not fit:\n  rot: unknown key; known here: root, train",
    ):
        parse_settings(DataSettings, ["rot=x"])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_configurations_that_come_with_the_project_load(path: Path, tmp_path: Path) -> None:
    config = load_config(path, [])
    (tmp_path / "dumped.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "dumped.yaml", []) == config


@pytest.mark.skipif(not KUAIRAND.exists(), reason=f"needs the KuaiRand tables in {KUAIRAND}")
def test_the_kuairand_schema_fits_its_files() -> None:
    config = load_config(ROOT / "launch" / "configs" / "kuairand.yaml", [f"data.root={KUAIRAND}"])
    train, test = (
        Source(config.data.path(part), config.schema_)
        for part in (config.data.train, config.data.test)
    )
    assert (train.num_rows, test.num_rows) == (57_741, 37_043)
    encoders = fit_encoders(train, config.schema_, config.data.cold_start)
    assert 2 < encoders.num_rows["video"] <= 7_583 + 2
    assert encoders.num_rows["action"] == 3 + 2
