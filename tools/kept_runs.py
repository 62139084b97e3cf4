"""Trainings of a tool that is stopped and goes on: what is finished is kept, if it is the same."""

import shutil

from mail_torchrec.checkpoint.data_record import SourceRecord
from mail_torchrec.config import Config
from mail_torchrec.reproduce.jobs import TrainingJob
from mail_torchrec.train.data_splits import open_sources
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train


def train_once(config: Config, run_dir: RunDir) -> None:
    """Trains a run, unless it is finished; one that was stopped begins anew.

    Args:
        config: of the run.
        run_dir: of the run.

    Raises:
        ValueError: a finished run of another configuration or of other data.
    """
    sources = open_sources(config)
    held_out = None if sources.validation is None else SourceRecord.of(sources.validation)
    data = SourceRecord.of(sources.train), SourceRecord.of(sources.test), held_out
    if TrainingJob(config.name, config.train.seed, run_dir.path, config, data).is_finished():
        return
    if run_dir.config.exists():
        shutil.rmtree(run_dir.path)
    train(config, run_dir)
