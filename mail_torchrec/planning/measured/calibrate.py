"""``mail-torchrec plan --calibrate``: measures the machine and writes its hardware file."""

from dataclasses import dataclass, field
from pathlib import Path

from mail_torchrec.embeddings.hardware import PRESETS
from mail_torchrec.embeddings.rates.hardware_file import SUFFIX, HardwareFile
from mail_torchrec.planning.measured.job import RankJob, read_results
from mail_torchrec.planning.measured.launchers import check_not_a_rank, launcher_of
from mail_torchrec.utils.local_path import make_output_dir

_TIMEOUT = 600.0


@dataclass(frozen=True)
class CalibrateOptions:
    """Options of ``plan --calibrate``."""

    path: Path
    """File to write; the ranks' job lies in a folder beside it."""
    world_size: int
    scheduler: str | None = None
    """Scheduler of TorchX; None starts the ranks by torchrun on this machine."""
    job_arguments: dict[str, str] = field(default_factory=dict)
    """Arguments of the TorchX component."""


def calibrate(options: CalibrateOptions) -> str:
    """Measures the machine on all ranks at once, and writes the hardware file.

    Args:
        options: of the command.

    Returns:
        The text for the terminal.

    Raises:
        ValueError: the file has another suffix, or the ranks could not measure.
    """
    check_not_a_rank()
    path = options.path
    if path.suffix != SUFFIX:
        raise ValueError(f"--calibrate should be a file *{SUFFIX}, received '{path}'")
    launcher = launcher_of(options.scheduler, options.job_arguments)
    folder = path.with_suffix(".job")
    make_output_dir(folder)
    RankJob(device="auto", timeout=_TIMEOUT, steps=1, calibrates=True).save(folder)
    failure = launcher.run(folder, options.world_size)
    if failure is not None:
        raise ValueError(f"the machine could not be measured: {failure}")
    [measured] = read_results(folder)
    file = HardwareFile.model_validate(measured)
    file.save(path)
    return calibration_table(file) + f"\n\nplan --hardware {path} uses it: {path}"


def calibration_table(file: HardwareFile) -> str:
    """Returns the measured rates as a Markdown table, beside the published ones."""
    rates, preset = file.rates, PRESETS[file.preset]
    link = rates.all_to_all
    copied = preset.hbm_gb_s if rates.device == "cuda" else preset.host_gb_s
    rows = [
        ("copy, GB/s", rates.copy_gb_s, copied),
        ("all-to-all, GB/s", 1 / link.ms_a_mb if link.ms_a_mb else 0.0, preset.intra_gb_s),
        ("all-to-all, ms without data", link.latency_ms, 0.0),
        ("all-reduce, ms a MB", rates.all_reduce.ms_a_mb, 2 / preset.intra_gb_s),
        ("towers, TFLOP/s", rates.tower_tflops, preset.tflops),
        ("step, ms whatever it does", rates.steps.fixed_ms, 0.0),
        ("step, ms a group of tables", rates.steps.ms_a_group, 0.0),
        ("step, ms a thousand operators", rates.steps.ms_a_thousand_operators, 0.0),
        ("step, ms a MB that operators write", rates.steps.ms_a_mb, 0.0),
    ]
    for name, of_tables in rates.lookups.items():
        for kind, rate in (("pooled", of_tables.pooled), ("unpooled", of_tables.unpooled)):
            rows += [
                (f"{name}, {kind}, ms a million ids x 32 of {text}", rate.ms(1e6, 32, 1e5, of), 0.0)
                for text, of in (("a million rows", 1e6), ("a thousand", 1e3))
            ]
    lines = [f"| {file.measured_on} | measured | published |", "| --- | ---: | ---: |"]
    lines += [
        f"| {name} | {value:.3g} | {known:.3g} |" if known else f"| {name} | {value:.3g} | |"
        for name, value, known in rows
    ]
    return "\n".join(lines)
