"""Fixtures for more than one folder of tests."""

import gc
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.distributed.process_group import process_group
from mail_torchrec.train import evaluation
from tests.support import plain
from tests.support.blank_pictures import leave_pictures_blank
from tests.support.exported_models import exported
from tests.support.kept_operators import keep_operators
from tests.support.small_rows import write_rows

_draw_loss_curves = evaluation.draw_loss_curves

__all__ = ["exported"]  # a fixture, shared by folders

# By time in CI, the last some 25 seconds, a part of it waiting for processes: what remains at the
# end is short, so that all of pytest-xdist's processes end together.
_LONGEST_FIRST = [
    "distributed/test_lost_processes.py",
    "checkpoint/test_ranks.py",
    "pages/test_shop.py",
    "tools/test_bench_deltas.py",
    "tools/test_gpu_check.py",
    "train/test_every_fault.py",
    "synthetic/test_true_rate.py",
    "tools/test_soak_days.py",
    "launch/test_slurm.py",
    "export/test_remedies.py",
    "records/test_hostile_runs.py",
    "export/test_zero_shot_switches.py",
    "launch/test_two_hosts.py",
    "train/test_every_kind.py",
    "export/test_new_items.py",
    "export/test_onnx_graph.py",
    "train/test_validation.py",
    "train/test_continued_ranks.py",
    "checkpoint/test_reshard.py",
    "synthetic/test_synthetic_world.py",
    "distributed/test_heartbeat.py",
    "sweep/test_sweep.py",
    "checkpoint/test_resume.py",
    "deltas/test_kinds_of_tables.py",
    "train/test_tasks.py",
    "deltas/test_apply.py",
    "train/test_continued.py",
    "data/test_many_containers.py",
    "prepare/test_prepare.py",
    "distributed/test_faults.py",
    "cli/test_interrupts.py",
    "train/test_weights.py",
    "export/drift/test_golden_behaviours.py",
    "inference/test_hostile_artefacts.py",
    "export/test_calibration.py",
    "export/test_export.py",
    "train/test_names.py",
    "distributed/test_equal_ranks.py",
    "prepare/events/test_rows.py",
    "serve/limits/test_overload.py",
    "planning/measured/test_measure.py",
    "export/test_served_best.py",
    "metrics/test_report.py",
    "export/test_served_vectors.py",
    "profiling/test_profiled_runs.py",
    "train/test_shape_buckets.py",
    "launch/test_local.py",
    "checkpoint/test_every_kind.py",
    "data/test_many_damages.py",
    "cli/test_object_store.py",
    "train/test_trainer.py",
    "serve/test_following.py",
    "tools/test_bench.py",
    "train/test_switches.py",
    "reproduce/test_figures.py",
    "planning/test_estimate.py",
]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keeps the garbage collector from what stays: modules and tests, a million objects."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Moves the tests of long files to the beginning, in whose order files are handed out."""
    folder = Path(__file__).parent
    places = {folder / name: place for place, name in enumerate(_LONGEST_FIRST)}
    assert all(path.exists() for path in places), "_LONGEST_FIRST names a file that is not there"
    items.sort(key=lambda item: places.get(item.path, len(places)))


# A time limit on each example would be a timed test, which a busy machine fails.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture
def schema() -> Schema:
    """A small schema with every kind of column; ``tests/support/plain.py`` writes its rows."""
    return plain.schema()


@pytest.fixture
def single_process() -> Iterator[None]:
    """A process group of this process."""
    with process_group("cpu"):
        yield


@pytest.fixture(scope="session", autouse=True)
def blank_loss_curves() -> Iterator[None]:
    """A run in this process leaves empty pictures."""
    with pytest.MonkeyPatch.context() as patch:
        leave_pictures_blank(patch.setattr)
        yield


@pytest.fixture(scope="session", autouse=True)
def kept_operators() -> Iterator[None]:
    """Exports in this process share the exporter's table of operators."""
    with pytest.MonkeyPatch.context() as patch:
        keep_operators(patch)
        yield


@pytest.fixture
def drawn_loss_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run draws its loss curves after all."""
    monkeypatch.setattr(evaluation, "draw_loss_curves", _draw_loss_curves)


@pytest.fixture(scope="session")
def small_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 300 training rows of ``tests/support/small_rows.py``."""
    folder = tmp_path_factory.mktemp("small")
    write_rows(folder / "train" / "a.parquet", 300, seed=1)
    return folder
