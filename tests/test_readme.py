"""What the README shows runs."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mail_torchrec.config import load_config
from mail_torchrec.data.cold_start import ColdStartSettings
from mail_torchrec.parts import ModelSettings
from mail_torchrec.reproduce.methods import METHODS
from mail_torchrec.settings import Settings
from mail_torchrec.towers.multi_task import MultiTaskSettings
from mail_torchrec.towers.zero_shot import ZeroShotSettings
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_worked_example_trains(tmp_path: Path) -> None:
    [config] = re.findall(r"```yaml\n(name: mine\n.*?)```", README, re.DOTALL)
    (tmp_path / "mine.yaml").write_text(config)
    row_1 = {"uid": 17, "age": "24-30", "city": None, "seen": [9, 4, 31], "seen_how": [1, 3, 1], "hour": 22, "item": 4, "tags": ["food"]}
    row_2 = {"uid": 18, "age": "50+", "city": "Ulm", "seen": [], "seen_how": [], "hour": 9, "item": 31, "tags": []}
    rows = [row_1 | {"price": 3.5, "clicked": 1}, row_2 | {"price": None, "clicked": 0}, row_1 | {"item": 9, "price": 1.0, "clicked": 0}]
    for folder in ("days=1-6", "day=7"):
        (tmp_path / folder).mkdir()
        pq.write_table(pa.Table.from_pylist(rows * 20), tmp_path / folder / "part.parquet")
    figures = train(load_config(tmp_path / "mine.yaml", [f"data.root={tmp_path}"]), RunDir(tmp_path / "run"))
    assert {part: figure["rows"] for part, figure in figures.items()} == {"new": 20, "old": 40, "all": 60}


def test_the_file_tour_names_every_module() -> None:
    tour = README[README.index("## File tour") : README.index("## Your own Parquet")]
    package = Path(__file__).parent.parent / "mail_torchrec"
    quiet = {"__init__.py", "__main__.py", "quiet.py"}
    others = [*(package.parent / "tools").glob("*.py"), *(package / "presets").glob("*.yaml")]
    for path in [*package.rglob("*.py"), *others]:
        if path.name not in quiet and path.parent.name != "losses":
            assert path.name in tour, f"the README's file tour does not name {path}"


@pytest.mark.parametrize("settings", [ModelSettings, ZeroShotSettings, MultiTaskSettings, ColdStartSettings])
def test_every_switch_of_the_model_and_of_the_cold_start_is_explained(settings: type[Settings]) -> None:
    for key in settings.model_fields:
        assert re.search(rf"`([a-z_]+\.)*{key}[`=]|`\.{key}`", README), key


def test_every_method_is_named() -> None:
    for name in METHODS:
        assert f"`{name.removesuffix(' oracle')}`" in README, name


def test_files_that_the_readme_names_exist() -> None:
    root = Path(__file__).parent.parent
    for target in re.findall(r"\]\((?!https?://)([^)]+)\)", README):
        assert (root / target).exists(), target
