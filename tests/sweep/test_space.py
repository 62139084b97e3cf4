"""Search spaces: what a file may say, and which overrides come of it."""

import json
from pathlib import Path

import optuna
import pytest

from mail_torchrec.sweep.space import load_space

SPACE = """
space:
  train.learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}
  train.batch_size: {low: 128, high: 512, step: 128}
  train.epochs: {low: 1, high: 3}
  model.tower: {choices: [dmr, base_dnn]}
  model.zero_shot: {choices: [null, {variant: full}]}
pruning: {min_evaluations: 2}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "space.yaml"
    path.write_text(text)
    return path


def test_overrides_lie_in_the_space_and_are_those_of_the_study(tmp_path: Path) -> None:
    space = load_space(write(tmp_path, SPACE))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    seen = []
    for _ in range(40):
        trial = study.ask()
        pairs = dict(one.split("=", 1) for one in space.suggest(trial))
        seen.append({key: json.loads(value) for key, value in pairs.items()})
        assert trial.params["train.learning_rate"] == seen[-1]["train.learning_rate"]
        study.tell(trial, 0.0)
    assert all(1e-4 <= one["train.learning_rate"] <= 1e-2 for one in seen)
    assert {one["train.batch_size"] for one in seen} == {128, 256, 384, 512}
    assert {one["train.epochs"] for one in seen} == {1, 2, 3}
    assert {one["model.tower"] for one in seen} == {"dmr", "base_dnn"}
    assert [one["model.zero_shot"] for one in seen].count(None) not in (0, 40)
    assert all(one["model.zero_shot"] in (None, {"variant": "full"}) for one in seen)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "should be a valid dictionary"),
        ("space: {}", "at least 1 item"),
        ("space: {a: {low: 2, high: 1}}", "low should be below high, received 2 and 1"),
        ("space: {a: {low: 0, high: 1, log: true}}", "log wants bounds above 0"),
        ("space: {a: {low: 1, high: 9, step: 0}}", "step should be above 0"),
        ("space: {a: {low: .nan, high: 1.0}}", "should be a finite number"),
        ("space: {a: {choices: []}}", "at least 1 item"),
        ("space: {a: {lo: 1, high: 2}}", "Extra inputs are not permitted"),
        ("space: {a: {choices: [1]}}\npruning: {reduction: 1}", "greater than or equal to 2"),
        ("space: {a: {choices: [1]}, a: {choices: [2]}}", "should stand once"),
        ("space: [", "is not valid YAML"),
    ],
)
def test_another_space_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"space\.yaml|should stand once") as found:
        load_space(write(tmp_path, text))
    assert message in str(found.value)


def test_a_missing_space_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no search space at"):
        load_space(tmp_path / "space.yaml")
