"""The command ``sweep`` with real trainings, on this machine and as TorchX jobs."""

import json
from pathlib import Path

import pytest
import yaml

from mail_torchrec.sweep.command import SweepOptions, sweep
from tests.support.processes import PreloadedPopen
from tests.support.small_rows import config_tree, write_rows

SPACE = """
space:
  train.learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}
  train.epochs: {choices: [1, 2]}
"""


@pytest.fixture
def options(tmp_path: Path) -> SweepOptions:
    """Two trials on small data with validation rows."""
    write_rows(tmp_path / "train" / "a.parquet", 250, seed=1)
    write_rows(tmp_path / "test" / "c.parquet", 120, seed=3)
    (tmp_path / "space.yaml").write_text(SPACE)
    tree = config_tree(tmp_path)
    tree["data"]["validation"] = {"share": 0.3}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    return SweepOptions(
        tmp_path / "config.yaml", tmp_path / "space.yaml", tmp_path / "out", 2, 2, 1, 1, ()
    )


@pytest.mark.distributed
def test_a_sweep_trains_tests_its_winner_and_adds_trials(
    options: SweepOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mail_torchrec.sweep.trials.subprocess.Popen", PreloadedPopen)
    text = sweep(options, "mail-torchrec sweep")
    found = json.loads((options.out / "sweep.json").read_text())
    states = [trial["state"] for trial in found["trials"]]
    assert set(states) <= {"finished", "stopped"} and "finished" in states
    best = found["best"]
    run = Path(best["run_dir"])
    assert best["test"] == json.loads((run / "metrics.json").read_text())
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["train"]["epochs"] == best["settings"]["train.epochs"]
    assert config["train"]["learning_rate"] == best["settings"]["train.learning_rate"]
    assert f"auc {best['validation']:.5f} of all validation rows" in text
    more = SweepOptions(**(vars(options) | {"num_trials": 3}))
    sweep(more, "mail-torchrec sweep")
    again = json.loads((options.out / "sweep.json").read_text())["trials"]
    assert again[:2] == found["trials"] and len(again) == 3


@pytest.mark.long
@pytest.mark.distributed
def test_trials_run_as_torchx_jobs(options: SweepOptions) -> None:
    jobs = {"scheduler": "local_cwd", "scheduler_arguments": {"j": "1x2"}, "num_jobs": 1}
    submitted = SweepOptions(**(vars(options) | jobs))
    sweep(submitted, "mail-torchrec sweep --scheduler local_cwd --job j=1x2")
    found = json.loads((options.out / "sweep.json").read_text())
    assert [trial["state"] for trial in found["trials"]].count("finished") >= 1
    data = json.loads((Path(found["best"]["run_dir"]) / "data.json").read_text())
    assert data["ranks"] == 2


@pytest.mark.parametrize(
    ("space", "overrides", "message"),
    [
        (SPACE, ("data.validation=null",), "this configuration has none; set data.validation"),
        ("space: {data.test: {choices: [a]}}", (), "data.test decide what is measured"),
        ("space: {train.rate: {low: 1, high: 2}}", (), "train.rate=1: .*unknown key"),
        ("space: {model.tower: {choices: [dmr, dmq]}}", (), 'model.tower="dmq": unknown tower'),
        ("space: {train.epochs: {low: 0, high: 2}}", (), "train.epochs=0: .*greater than or"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_the_first_trial(
    options: SweepOptions, space: str, overrides: tuple[str, ...], message: str
) -> None:
    options.space.write_text(space)
    changed = SweepOptions(**(vars(options) | {"overrides": overrides}))
    with pytest.raises(ValueError, match="(?s)" + message):
        sweep(changed, "")
    assert not options.out.exists()


def test_a_folder_of_another_sweep_is_refused(
    options: SweepOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mail_torchrec.sweep.command.Sweep.run", lambda sweep: None)
    sweep(options, "")
    options.space.write_text(SPACE.replace("1.0e-2", "1.0e-1"))
    with pytest.raises(ValueError, match="holds a sweep with another space"):
        sweep(options, "")
