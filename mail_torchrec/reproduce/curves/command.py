"""Runs ``mail-torchrec reproduce curve``: trains every method at every point, and draws it."""

from collections.abc import Sequence
from dataclasses import dataclass

from mail_torchrec.config import dump_config
from mail_torchrec.reproduce.command import ReproduceOptions
from mail_torchrec.reproduce.curves.curve import make_curve
from mail_torchrec.reproduce.curves.plan import plan_curve
from mail_torchrec.reproduce.curves.points import Axis, check_curve, rows_points, share_points
from mail_torchrec.reproduce.methods.selection import section_methods
from mail_torchrec.reproduce.runner import run_jobs
from mail_torchrec.reproduce.sections import write_report
from mail_torchrec.utils.local_path import make_output_dir


@dataclass(frozen=True)
class CurveOptions:
    """Options of the command line that only the curve has."""

    shares: Sequence[float] = ()
    """Training shares; none: the default ones."""
    rows: Sequence[int] = ()
    """Numbers of training rows, over which the curve is drawn then."""


def reproduce_curve(options: ReproduceOptions, curve: CurveOptions, command: str) -> str:
    """Makes the curve.

    Args:
        options: of the command line.
        curve: those that only the curve has.
        command: the command line itself, for the report.

    Returns:
        The Markdown of the curve, and the paths of the files written.

    Raises:
        ValueError: the configuration, a method or the data cannot be used, or runs failed.
    """
    if curve.shares and curve.rows:
        raise ValueError(
            "--share and --rows are two curves; give one of them, and the other in a second command"
        )
    axis, out = Axis.ROWS if curve.rows else Axis.SHARE, options.out
    config = check_curve(axis, options.config, options.overrides)
    methods = section_methods("curve", options.chosen, config.data.cold_start)
    if axis is Axis.ROWS:
        make_output_dir(out / "curve")
        points = rows_points(curve.rows, config, out / "curve")
    else:
        points = share_points(curve.shares)
    plan = plan_curve(
        axis, points, methods, options.config, out, options.num_seeds, options.overrides
    )
    run_jobs(plan.jobs, out, options.num_processes, options.threads)
    section = make_curve(plan, out)
    section.save(out, command, dump_config(config))
    paths = [out / f"{axis}.{kind}" for kind in ("md", "json")]
    paths += write_report(out, config.name)
    return "\n".join([section.text, "  ".join(map(str, paths))])
