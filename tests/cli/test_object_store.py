"""Data in an object store, and the credentials that nothing shows or stores."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import deltalake
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from mail_torchrec.cli import main
from mail_torchrec.data.parquet.files import parquet_files
from mail_torchrec.data_check.layout import find_layout
from mail_torchrec.distributed.launcher import report_error_to_launcher
from mail_torchrec.utils.logging import get_logger, write_unlocked
from tests.support.object_store import ObjectStore, object_store
from tests.support.processes import Ended, without_launcher
from tests.support.small_rows import config_tree, write_rows


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """A store with `kr/train` in Hive folders, and `kr/test`, a Delta table."""
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder / "train/day=1/a.parquet", 70, seed=1)
    write_rows(folder / "train/day=2/a.parquet", 50, seed=3)
    write_rows(folder / "b.parquet", 101, seed=2)
    for _ in range(2):  # the first version's file is superseded
        rows = pq.read_table(folder / "b.parquet")
        deltalake.write_deltalake(folder / "test", rows, mode="overwrite")
    (folder / "b.parquet").unlink()
    with object_store() as running:
        running.upload(folder, "kr")
        yield running


@pytest.fixture
def no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without credentials."""
    for name in os.environ:
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config_tree(Path("nowhere"))))
    return tmp_path / "small.yaml"


def run(*arguments: object) -> Ended:
    (ended,) = without_launcher(1, *map(str, arguments))
    return ended


def assert_hidden(store: ObjectStore, text: str) -> None:
    for secret in (store.secret, store.escaped_secret, store.secret[:10]):
        assert secret not in text


@pytest.mark.slow
def test_training_reads_with_credentials_in_the_uri_and_stores_none(
    store: ObjectStore, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    no_credentials: None,
) -> None:  # fmt: skip
    folder = tmp_path / "run"
    train = ["train", "--config", config, "--run-dir", folder, f"data.root={store.uri('kr')}"]
    outputs = []
    for options in (["data.num_workers=1"], ["--resume", "train.epochs=2"]):
        ended = run(*train, *options)
        assert ended.code == 0, ended.output
        outputs.append(ended.output)
    assert "going on after step" in outputs[1]
    saved = yaml.safe_load((folder / "config.yaml").read_text())["data"]["root"]
    assert saved == f"s3://clicks/kr?{store.options}"

    evaluate = ["evaluate", "--run-dir", folder]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", store.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    ended = run(*evaluate)
    assert ended.code == 1 and "'s3://clicks/kr/test' cannot be read" in ended.output
    assert "AWS_SECRET_ACCESS_KEY" in ended.output and "damaged" not in ended.output
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    ended = run(*evaluate)
    assert ended.code == 0, ended.output
    assert '"rows": 101' in json.dumps(json.loads((folder / "metrics.json").read_text()))
    for text in (*outputs, ended.output):
        assert_hidden(store, text)
    for file in folder.rglob("*"):
        if file.is_file():
            assert_hidden(store, file.read_bytes().decode("latin-1"))


def test_partition_columns_and_delta_tables_are_read_from_the_store(store: ObjectStore) -> None:
    train = parquet_files(store.uri("kr/train"), "")
    assert [file.path for file in train] == [
        f"s3://clicks/kr/train/day={day}/a.parquet" for day in (1, 2)
    ]
    assert [file.read(["day"])["day"].unique().to_pylist() for file in train] == [[1], [2]]
    (test,) = parquet_files(store.uri("kr/test"), "")
    assert test.num_rows == 101
    with pytest.raises(ValueError, match="lies in 'clicks/kr/test', a table of Delta"):
        parquet_files(store.uri("kr/test/" + test.path.rpartition("/")[2]), "")


def test_a_draft_finds_training_and_test_where_the_uri_holds_credentials(
    store: ObjectStore, no_credentials: None
) -> None:
    layout = find_layout(store.uri("kr/train"))
    assert (layout.train, layout.test) == (["day=1"], "day=2")
    assert [file.path for file in layout.files] == ["s3://clicks/kr/train/day=1/a.parquet"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("{secret}", "wr0ngs3cret"), "'s3://clicks/kr/train' cannot be read: .*credentials"),
        (("{key}", "AKIAUNKNOWN"), "'s3://clicks/kr/train' cannot be read: .*credentials"),
        (("@clicks", "@nobucket"), "NO_SUCH_BUCKET.*correct the bucket's name"),
        (("/kr", "/none"), "no data at 's3://clicks/none/train': set data.root"),
        (("region=", "place="), "pyarrow.fs opens .*query parameter in S3 URI: 'place'"),
        (("{secret}", "wr0ng/s3cret"), "a secret in it is percent-encoded"),
        (("s3:", "s4:"), "Unrecognized filesystem type in URI: s4://clicks"),
    ],
)
def test_each_way_of_no_access_has_a_message_of_its_own(
    change: tuple[str, str], message: str, store: ObjectStore, no_credentials: None
) -> None:
    found = {"secret": store.escaped_secret, "key": store.key}
    uri = store.uri("kr/train").replace(change[0].format(**found), change[1])
    with pytest.raises(ValueError, match=message) as error:
        parquet_files(uri, "set data.root")
    assert "damaged" not in str(error.value) and "s3cret" not in str(error.value)
    assert_hidden(store, str(error.value))


def test_no_connection_while_reading_is_no_damage(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.parquet", 70, seed=1)
    with object_store() as running:
        running.upload(tmp_path, "a")
        (file,) = parquet_files(running.uri("a"), "")
        assert file.num_rows == 70
    with pytest.raises(
        ValueError, match=r"s3://clicks/a/a\.parquet cannot be read: .*check the net"
    ):
        file.read(["user"], 1)


SECRET = quote("p4ss/w0rd+", safe="")
URI = f"s3://AKIA:{SECRET}@clicks/kr?region=us-east-1&session_token=p4ss"


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--run-dir", "r", f"data.root={URI}", f"data.num_workers={URI}"],
        ["train", "--run-dir", "r", f"data.root.x={URI}", f"data.root={URI}"],
        ["train", "--run-dir", "r", URI],
        ["train", "--run-dir", "r", f"data.root=[{URI}"],
        ["train", "--run-dir", URI],
        ["evaluate", "--run-dir", "r", URI, "--data", URI],
        ["plan", "--rows", URI],
        [URI],
    ],
)
def test_no_message_of_the_command_line_shows_a_secret(
    words: list[str],
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    given = ["--config", str(config)] if words[0] == "train" else []
    words = [*words[:1], *given, *words[1:]]
    message = CliRunner().invoke(main, words)
    traced = CliRunner().invoke(main, ["--traceback", *words])
    assert message.exit_code != 0 and traced.exc_info is not None
    sys.excepthook(*traced.exc_info)  # as the interpreter does at the end
    for text in (message.output, traced.output, capsys.readouterr().err):
        assert "p4ss" not in text, text


def test_the_printed_configuration_shows_no_secret(config: Path) -> None:
    words = ["train", "--config", str(config), f"data.root={URI}", "--print-config"]
    printed = yaml.safe_load(CliRunner().invoke(main, words).output)
    assert printed["data"]["root"] == "s3://clicks/kr?region=us-east-1"


def test_a_what_if_report_of_many_runs_is_refused_before_it_trains(
    config: Path, tmp_path: Path
) -> None:
    words = ["reproduce", "table2", "--config", config, "--out", tmp_path / "out"]
    ended = run(*words, f"data.root={URI}")
    assert ended.code == 1 and "give them by the environment" in ended.output
    assert "p4ss" not in ended.output


def test_logs_and_torchruns_record_show_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    get_logger("mail_torchrec.test").warning("reading '%s' failed", URI)
    write_unlocked(f"reading {URI}")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    try:
        raise ValueError(f"no data at '{URI}'")
    except ValueError as error:
        report_error_to_launcher(error)
    record = (tmp_path / "error.json").read_text()
    shown = capsys.readouterr().err
    assert json.loads(record)["message"]["message"].startswith(
        "ValueError: no data at 's3://clicks"
    )
    assert shown.count("s3://clicks/kr?region=us-east-1") == 2
    assert "p4ss" not in shown + record
