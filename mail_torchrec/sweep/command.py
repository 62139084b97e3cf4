"""The command ``sweep``: checks what is searched, runs the trials, and writes the report."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mail_torchrec.config import Config, dump_config, load_config
from mail_torchrec.sweep.report import report_files, write_report
from mail_torchrec.sweep.runner import Sweep, SweepPlan
from mail_torchrec.sweep.space import Range, SearchSpace, load_space
from mail_torchrec.sweep.torchx_trials import TorchxLauncher
from mail_torchrec.sweep.trials import LocalLauncher, TrialLauncher
from mail_torchrec.train.assembly import config_feature_tables
from mail_torchrec.utils.config_trees import is_setting_of
from mail_torchrec.utils.file_lock import lock_folder
from mail_torchrec.utils.local_path import make_output_dir
from mail_torchrec.utils.run_files import write_file

_FIXED = (
    *("name", "data.root", "data.train", "data.train.", "data.test", "data.test."),
    *("data.validation", "data.validation."),
    *("data.test_negatives_kept", "data.cold_start.", "data.new_user_max_behaviours"),
    *("data.new_items", "data.new_items."),
    *("train.early_stopping.metric", "train.early_stopping.cohort", "train.evaluate_rows"),
    *("train.evaluate_every", "trackers"),
)
"""Settings that decide what is measured: trials that differ in them cannot be compared."""


@dataclass(frozen=True)
class SweepOptions:
    """Options of the command."""

    config: Path
    space: Path
    out: Path
    num_trials: int
    num_jobs: int
    threads: int
    seed: int
    overrides: tuple[str, ...]
    keeps_checkpoints: bool = False
    scheduler: str | None = None
    """Scheduler of TorchX; None runs the trials as processes of this machine."""
    scheduler_arguments: dict[str, str] = field(default_factory=dict)
    """Arguments of the TorchX component."""


def sweep(options: SweepOptions, command: str) -> str:
    """Runs the trials that are missing, and writes the report; returns it with its files.

    Args:
        options: of the command.
        command: the command line, for the report.

    Raises:
        ValueError: the space does not fit the configuration, the folder holds another sweep, or
            the first trials all fail.
    """
    config, space = load_config(options.config, list(options.overrides)), load_space(options.space)
    _check(config, space, options)
    make_output_dir(options.out)
    with lock_folder(options.out):
        _write_or_compare(options.out / "space.json", space.model_dump_json(indent=2) + "\n")
        _write_or_compare(options.out / "config.yaml", dump_config(config))
        stopping = config.train.early_stopping
        plan = SweepPlan(
            options.out,
            options.out / "config.yaml",
            space,
            stopping.metric,
            stopping.cohort,
            options.num_trials,
            options.num_jobs,
            options.seed,
            options.keeps_checkpoints,
        )
        running = Sweep(plan, _launcher(options))
        try:
            running.run()
        finally:
            text = write_report(plan, running.study, command)
    return text + "\n" + "\n".join(map(str, report_files(options.out)))


def _launcher(options: SweepOptions) -> TrialLauncher:
    if options.scheduler is None:
        return LocalLauncher(options.threads)
    return TorchxLauncher(options.scheduler, options.scheduler_arguments)


def _check(config: Config, space: SearchSpace, options: SweepOptions) -> None:
    """Checks that trials can be compared, and that each end of each range is a valid setting."""
    if config.data.validation is None:
        raise ValueError(
            "a sweep compares trials on validation rows, and this configuration has none; set "
            "data.validation, such as data.validation={share: 0.05}"
        )
    config.data.check_no_credentials()
    if fixed := [key for key in space.space if is_setting_of(key, _FIXED)]:
        raise ValueError(
            f"search space '{options.space}': {', '.join(fixed)} decide what is measured, so that "
            "trials could not be compared; leave them out"
        )
    for override in _ends(space):
        try:
            changed = load_config(options.config, [*options.overrides, override])
            config_feature_tables(changed)  # looks at the tower and its options
        except ValueError as error:
            raise ValueError(f"search space '{options.space}', {override}: {error}") from error


def _ends(space: SearchSpace) -> Iterator[str]:
    """Yields overrides with both ends of each range, and with each choice."""
    for key, values in space.space.items():
        tried = [values.low, values.high] if isinstance(values, Range) else values.choices
        yield from (f"{key}={json.dumps(value)}" for value in tried)


def _write_or_compare(path: Path, text: str) -> None:
    """Writes a file of the sweep, or checks that it is the one of a sweep that goes on."""
    if not path.exists():
        write_file(path, text)
    elif path.read_text() != text:
        raise ValueError(
            f"'{path.parent}' holds a sweep with another {path.stem}, whose trials are no part of "
            "this one; choose another --out, or delete it"
        )
