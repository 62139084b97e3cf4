"""Runs ``mail-torchrec reproduce coldrec``: trains on warm pairs, ranks all items for each user."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mail_torchrec.config import Config, dump_config, load_config
from mail_torchrec.export.command import ExportOptions, export
from mail_torchrec.reproduce.bootstrap import BootstrappedMetric, paired_difference
from mail_torchrec.reproduce.coldrec.click_log import ClickLog, unread_columns, write_rows
from mail_torchrec.reproduce.coldrec.coldrec_text import ColdRecContent, format_coldrec
from mail_torchrec.reproduce.coldrec.held_out import HeldOutPairs, bootstrap_rankings, cold_items
from mail_torchrec.reproduce.coldrec.item_scores import item_scores
from mail_torchrec.reproduce.coldrec.split import Ints, split_pairs
from mail_torchrec.reproduce.command import ReproduceOptions
from mail_torchrec.reproduce.jobs import TrainingJob, group_by_method, plan_trainings
from mail_torchrec.reproduce.methods.selection import section_methods
from mail_torchrec.reproduce.runner import run_jobs
from mail_torchrec.reproduce.sections import ReportSection, write_report
from mail_torchrec.utils.progress import progress_bar

NUM_RESAMPLES = 1000
RANKING_LENGTH = 20
"""K of recall and NDCG, the benchmark's own."""
_FEWEST_ITEMS = 10


@dataclass(frozen=True)
class PreparedPairs:
    """Rows that methods are trained on, and the pairs on which their rankings are tested."""

    log: ClickLog
    """Cold items are in no history of it."""
    users: Ints
    """Rows of the tested users [users]."""
    held_out: HeldOutPairs
    counts: str
    """Numbers of clicks, users and items, in words."""


def reproduce_coldrec(options: ReproduceOptions, num_users: int, command: str) -> str:
    """Makes the section.

    Args:
        options: of the command line.
        num_users: test users, drawn at random, whose rankings are measured.
        command: the command line itself, for the report.

    Returns:
        The Markdown of the section, and the paths of the files written.

    Raises:
        ValueError: the configuration, a method or the data cannot be used, or runs failed.
    """
    config, out = load_config(options.config, list(options.overrides)), options.out
    rows = out / "coldrec" / "rows"
    pairs = prepare_pairs(config, rows, num_users)
    jobs = _train_all(options, config, rows)
    section = _make_section(measure_rankings(jobs, pairs), pairs, options.num_seeds)
    section.save(out, command, dump_config(config))
    paths = [out / "coldrec.md", out / "coldrec.json", *write_report(out, config.name)]
    return "\n".join([section.text, "  ".join(map(str, paths))])


def prepare_pairs(config: Config, folder: Path, num_users: int) -> PreparedPairs:
    """Splits a log's clicks, and writes the rows that methods are trained on.

    Args:
        config: whose training and test rows are the log.
        folder: gets ``train`` and ``test``.
        num_users: test users, drawn at random.

    Raises:
        ValueError: the log has too few clicked items.
    """
    log = ClickLog.read(config)
    _check_enough(log)
    split = split_pairs(log.users_N, log.items_N)
    cold = cold_items(log, split)
    log = log.without(cold)
    write_rows(log, split, folder, seed=1)
    tested = np.unique(log.users_N[np.concatenate([split.cold_test, split.warm_test])])
    users = np.random.default_rng(1).permutation(tested)[:num_users]
    counts = f"{log.counts()}, {len(cold):,} of them cold; "
    counts += f"{len(users):,} of {len(tested):,} test users"
    return PreparedPairs(log, users, HeldOutPairs.of(log, split, users), counts)


def _check_enough(log: ClickLog) -> None:
    if len(log.items) < _FEWEST_ITEMS:
        raise ValueError(
            f"data.train and data.test hold {log.counts()}; coldrec divides the clicked items into "
            f"warm and cold ones for validation and test, and needs at least {_FEWEST_ITEMS}"
        )


def measure_rankings(
    jobs: Sequence[TrainingJob], pairs: PreparedPairs
) -> Mapping[str, Mapping[tuple[str, str], BootstrappedMetric]]:
    """Ranks all items by each finished run, and bootstraps the metrics of each method."""
    found = {}
    bar: tqdm[TrainingJob] = progress_bar(total=len(jobs), desc="ranking", unit="run")
    with bar:
        for method, seeds in group_by_method(jobs).items():
            values = []
            for job in seeds:
                scores = item_scores(_exported(job), pairs.log, pairs.users)
                values.append(pairs.held_out.metrics(scores, RANKING_LENGTH))
                bar.update()
            found[method] = bootstrap_rankings(values, NUM_RESAMPLES)
    return found


def _train_all(options: ReproduceOptions, config: Config, rows: Path) -> list[TrainingJob]:
    """Trains what is missing on the rows of the split, in which nothing else is hidden."""
    methods = section_methods("coldrec", options.chosen, config.data.cold_start)
    overrides = (
        *options.overrides,
        *(f"data.root={rows.resolve()}", "data.train=train", "data.test=test"),
        *("data.cold_start={}", "data.new_items={max_count: 0}"),
        *(f"schema.columns.{name}=null" for name in unread_columns(config.schema_)),
    )
    jobs = plan_trainings(options.config, rows.parent, methods, options.num_seeds, overrides)
    run_jobs(jobs, options.out, options.num_processes, options.threads)
    return jobs


def _exported(job: TrainingJob) -> Path:
    """Exports a finished run into its own directory, unless it is there."""
    model = job.path / "exported"
    if not model.exists():
        export(ExportOptions(job.run_dir, model))
    return model


def _make_section(
    found: Mapping[str, Mapping[tuple[str, str], BootstrappedMetric]],
    pairs: PreparedPairs,
    num_seeds: int,
) -> ReportSection:
    base = next(iter(found))
    counts = f"{pairs.counts}; seeds: {num_seeds}; {NUM_RESAMPLES} resamples of users and seeds"
    means = {
        method: {key: metric.interval() for key, metric in metrics.items()}
        for method, metrics in found.items()
    }
    differences = {
        method: {key: paired_difference(metrics[key], found[base][key]) for key in metrics}
        for method, metrics in found.items()
        if method != base
    }
    content = ColdRecContent(counts, RANKING_LENGTH, means, differences, base)
    return ReportSection(
        "coldrec", content.title, format_coldrec(content), content.verdicts, {}, content.record()
    )
