"""``mail-torchrec reproduce``: trains what is missing, makes the sections that were asked for, and the report of all there are."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mail_torchrec.config import dump_config, load_config
from mail_torchrec.reproduce.figures import make_figures
from mail_torchrec.reproduce.methods import METHODS_OF, methods_of
from mail_torchrec.reproduce.paper import papers_dataset
from mail_torchrec.reproduce.runner import Run, plan, run_all
from mail_torchrec.reproduce.sections import SECTIONS, Section, write_report
from mail_torchrec.reproduce.tables import make_table
from mail_torchrec.reproduce.warmup import check_sweepable, evaluations, make_warmup


@dataclass(frozen=True)
class Order:
    """What was asked for on the command line."""

    what: str
    """A section, or ``all``."""
    config: Path
    out: Path
    num_seeds: int
    jobs: int
    """Processes side by side."""
    threads: int
    """Of each of them."""
    chosen: tuple[str, ...] = ()
    """Methods; none: the usual ones."""
    overrides: tuple[str, ...] = ()
    paper: str | None = None
    """The paper's dataset (public, industrial) whose figures are shown beside ours, or none; None:
    as the data says."""


def reproduce(order: Order, command: str) -> str:
    """Carries an order out.

    Args:
        order: what to do.
        command: how it was given, for the report.

    Returns:
        The Markdown of its sections, and the paths of what was written.

    Raises:
        ValueError: the configuration, a method or the data cannot be used, or runs failed.
    """
    config = load_config(order.config, list(order.overrides))
    dataset = papers_dataset(config.data.root) if order.paper is None else order.paper
    methods = _methods(order)
    if "warmup" in methods:
        check_sweepable(config.data)
    all_methods = list(dict.fromkeys(name for names in methods.values() for name in names))
    runs = plan(order.config, order.out, all_methods, order.num_seeds, order.overrides)
    run_all(runs, order.out, order.jobs, order.threads)
    texts = []
    for name, names in methods.items():
        section = _make(
            name,
            [run for run in runs if run.method in names],
            order,
            None if dataset == "none" else dataset,
        )
        section.save(order.out, command, dump_config(config))
        texts.append(section.text)
    paths = [order.out / f"{name}.{kind}" for name in methods for kind in ("md", "json")]
    return "\n".join([*texts, "  ".join(map(str, [*paths, *write_report(order.out, config.name)]))])


def _methods(order: Order) -> dict[str, list[str]]:
    """Section -> its methods. ``all`` leaves out a section that has none of the chosen ones."""
    if order.what != "all":
        return {order.what: methods_of(order.what, order.chosen)}
    known = {name for names in METHODS_OF.values() for name in names}
    if unknown := [name for name in order.chosen if name not in known]:
        raise ValueError(f"there is no method {unknown}; there are: {', '.join(sorted(known))}")
    asked = {
        section: [name for name in order.chosen if name in METHODS_OF[section]]
        for section in SECTIONS
    }
    return {
        section: methods_of(section, names)
        for section, names in asked.items()
        if names or not order.chosen
    }


def _make(name: str, runs: Sequence[Run], order: Order, dataset: str | None) -> Section:
    if name == "figures":
        return make_figures(runs, order.out)
    if name == "warmup":
        run_all(evaluations(runs), order.out, order.jobs, order.threads)
        return make_warmup(runs, order.out)
    return make_table(name, runs, order.out, dataset)
