"""Runs ``mail-torchrec reproduce``: trains what is missing, makes sections, writes the report."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mail_torchrec.config import dump_config, load_config
from mail_torchrec.data.cold_start import ColdStartSettings
from mail_torchrec.reproduce.figures import make_figures
from mail_torchrec.reproduce.jobs import TrainingJob, plan_trainings
from mail_torchrec.reproduce.methods.item_methods import check_new_items
from mail_torchrec.reproduce.methods.selection import SECTION_METHODS, section_methods
from mail_torchrec.reproduce.paper import dataset_of_paper
from mail_torchrec.reproduce.runner import run_jobs
from mail_torchrec.reproduce.sections import SECTIONS, ReportSection, write_report
from mail_torchrec.reproduce.tables import make_table
from mail_torchrec.reproduce.warmup import check_sweepable, make_warmup, plan_evaluations


@dataclass(frozen=True)
class ReproduceOptions:
    """Options of the command line."""

    what: str
    """A section, or ``all``."""
    config: Path
    out: Path
    num_seeds: int
    num_processes: int
    """Runs side by side, each in a process of its own."""
    threads: int
    """Threads of each process."""
    chosen: tuple[str, ...] = ()
    """Methods; none: the default ones of each section."""
    overrides: tuple[str, ...] = ()
    paper: str | None = None
    """The paper's dataset (public, industrial) whose metrics are shown beside ours, or none; None:
    as the data says."""


def reproduce(options: ReproduceOptions, command: str) -> str:
    """Makes the sections that were asked for.

    Args:
        options: of the command line.
        command: the command line itself, for the report.

    Returns:
        The Markdown of the sections, and the paths of the files written.

    Raises:
        ValueError: the configuration, a method or the data cannot be used, or runs failed.
    """
    config = load_config(options.config, list(options.overrides))
    dataset = dataset_of_paper(config.data.root) if options.paper is None else options.paper
    methods = _methods_by_section(options, config.data.cold_start)
    if "warmup" in methods:
        check_sweepable(config.data)
    if "items" in methods:
        check_new_items(config)
    jobs = _train_all(options, methods)
    texts = []
    for name, names in methods.items():
        section_jobs = [job for job in jobs if job.method in names]
        section = _make_section(name, section_jobs, options, None if dataset == "none" else dataset)
        section.save(options.out, command, dump_config(config))
        texts.append(section.text)
    paths = [options.out / f"{name}.{kind}" for name in methods for kind in ("md", "json")]
    paths += write_report(options.out, config.name)
    return "\n".join([*texts, "  ".join(map(str, paths))])


def _methods_by_section(
    options: ReproduceOptions, cold_start: ColdStartSettings
) -> dict[str, list[str]]:
    """Selects the methods of each section; ``all`` leaves out sections without a chosen one."""
    if options.what != "all":
        return {options.what: section_methods(options.what, options.chosen, cold_start)}
    known = {name for names in SECTION_METHODS.values() for name in names}
    if unknown := [name for name in options.chosen if name not in known]:
        raise ValueError(f"there is no method {unknown}; there are: {', '.join(sorted(known))}")
    chosen = {
        section: [name for name in options.chosen if name in SECTION_METHODS[section]]
        for section in SECTIONS
    }
    return {
        section: section_methods(section, names, cold_start)
        for section, names in chosen.items()
        if names or not options.chosen
    }


def _train_all(options: ReproduceOptions, methods: dict[str, list[str]]) -> list[TrainingJob]:
    """Trains the methods of all sections, each once."""
    names = list(dict.fromkeys(name for names in methods.values() for name in names))
    jobs = plan_trainings(options.config, options.out, names, options.num_seeds, options.overrides)
    run_jobs(jobs, options.out, options.num_processes, options.threads)
    return jobs


def _make_section(
    name: str, jobs: Sequence[TrainingJob], options: ReproduceOptions, dataset: str | None
) -> ReportSection:
    if name == "figures":
        return make_figures(jobs, options.out)
    if name == "warmup":
        evaluations = plan_evaluations(jobs)
        run_jobs(evaluations, options.out, options.num_processes, options.threads)
        return make_warmup(jobs, options.out)
    return make_table(name, jobs, options.out, None if name == "items" else dataset)
