r"""Measures training speed: this project and a direct reference in turns, the machine's limits.

    python tools/bench.py --out runs/bench                      # all, half an hour on 2 cores
    python tools/bench.py --out runs/bench --part throughput    # rows a second alone
    python tools/bench.py --out runs/bench --part fuxictr --fuxictr-source CHECKOUT --threads 1 \
        --config launch/configs/kuairand.yaml data.root=FOLDER

``bench.json``, ``.md``, ``.html`` and plots are written anew after each part of ``benchmark/``.
"""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `tools.benchmark`

from mail_torchrec.cli.options import LOCAL_PATH, OUTPUT_DIR
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.distributed.process_group import process_group
from mail_torchrec.utils.logging import silence_third_parties
from tools.benchmark.fuxictr.comparison import check_source, compare_with_fuxictr
from tools.benchmark.fuxictr.profiling import add_fuxictr_profile
from tools.benchmark.machine_limits import describe_machine, machine_limits
from tools.benchmark.quality import compare_auc
from tools.benchmark.random_rows import RowSettings, write_rows
from tools.benchmark.reader_throughput import measure_reader
from tools.benchmark.reference.requirements import check_measurable
from tools.benchmark.report import target_table, write_report
from tools.benchmark.scaling import ScalingExperiment
from tools.benchmark.step_breakdown import measure_breakdown
from tools.benchmark.step_cost import StepCost, step_cost
from tools.benchmark.step_profile import ProfileExperiment
from tools.benchmark.subprocess_trainer import SubprocessTrainer
from tools.benchmark.targets import Results
from tools.benchmark.throughput import measure_in_turns
from tools.benchmark.trainers import (
    ProjectTrainer,
    ReferenceTrainer,
    fit_training_encoders,
    make_trainer,
)
from tools.benchmark.workload import (
    DMR,
    GROUPED,
    SMALL,
    Variant,
    Workload,
    base_config_tree,
    default_variants,
    in_bfloat16,
)
from tools.tool_command import ToolCommand

PARTS = ("limits", "throughput", "breakdown", "profile", "reader", "scaling", "quality")
"""In this order; ``fuxictr`` follows them where a checkout is given."""
_FUXICTR_ENVIRONMENT = Path.home() / ".cache/mail-torchrec/fuxictr"


@dataclass
class Bench:
    """A bench: what its parts share, and their results."""

    workload: Workload
    overrides: tuple[str, ...]
    variants: list[Variant]
    encoders: Encoders
    device: torch.device
    out: Path
    options: dict[str, Any]
    """Numbers of the command line."""
    results: Results

    def run(self, part: str) -> None:
        """Measures one part and writes the report."""
        click.echo(f"{part} ...")
        getattr(self, part)()
        write_report(self.results, self.out)

    def limits(self) -> None:
        """Measures the machine's limits."""
        self.results["limits"] = machine_limits(self.device, small=self.options["small"])

    def throughput(self) -> None:
        """Measures the variants and the reference in turns."""
        device, threads = self.device.type, self.options["threads"]
        with ExitStack() as processes:
            trainers = [
                processes.enter_context(SubprocessTrainer(self.workload, variant, device, threads))
                for variant in (*self.variants, None)
            ]
            repeats, steps = self.options["repeats"], self.options["steps"]
            speeds = measure_in_turns(trainers, repeats=repeats, steps=steps)
        self.results["throughput"] = {name: speed.as_dict() for name, speed in speeds.items()}

    def breakdown(self) -> None:
        """Measures the parts of a step, and computes its arithmetic by formula."""
        self.results["breakdown"], self.results["step_cost"] = {}, {}
        for variant in (*self.variants, None):
            trainer = make_trainer(self.workload, variant, self.device, self.encoders)
            for _ in range(2):
                trainer.step()
            parts = measure_breakdown(trainer, self.options["steps"], self.device)
            self.results["breakdown"][trainer.name] = parts
            self.results["step_cost"][trainer.name] = vars(_cost_of_a_batch(trainer))

    def profile(self) -> None:
        """Profiles all trainers, and FuxiCTR where its source is given, by group of operators."""
        if "limits" not in self.results:
            self.limits()
        numbers = self.options["threads"], self.options["steps"]
        experiment = ProfileExperiment(self.workload, self.device.type, *numbers)
        found = experiment.measure(self.variants, self._grouped())
        if self.options["fuxictr_source"]:
            add_fuxictr_profile(found, self.workload, self.encoders, self.options)
        self.results["profile"] = found

    def _grouped(self) -> Variant:
        """The grouped variant, or the first one."""
        return next((one for one in self.variants if one.name == GROUPED.name), self.variants[0])

    def reader(self) -> None:
        """Measures the reader alone."""
        self.results["reader"] = measure_reader(users=2_048 if self.options["small"] else 65_536)

    def scaling(self) -> None:
        """Measures batch, T, table rows and ranks of the grouped variant, or of the first one."""
        variant = self._grouped()
        threads, repeats, steps, small = (
            self.options[name] for name in ("threads", "repeats", "steps", "small")
        )
        experiment = ScalingExperiment(
            variant, self.overrides, threads, self.device.type, repeats, steps, small, click.echo
        )
        self.results["scaling"] = experiment.measure()

    def quality(self) -> None:
        """Compares the AUC of all variants but DMR alone with the reference's."""
        alone = {DMR.name, in_bfloat16(DMR).name}
        variants = [variant for variant in self.variants if variant.name not in alone]
        numbers = {"seeds": self.options["seeds"], "epochs": self.options["epochs"]}
        self.results["quality"] = compare_auc(
            self.workload, variants, self.device, self.encoders, **numbers, log=click.echo
        )

    def fuxictr(self) -> None:
        """Compares DMR with FuxiCTR's."""
        self.results["fuxictr"] = compare_with_fuxictr(
            self.workload,
            self.encoders,
            check_source(self.options["fuxictr_source"]),
            self.options["fuxictr_env"],
            repeats=self.options["seeds"],
            threads=self.options["threads"],
            log=click.echo,
        )


def _cost_of_a_batch(trainer: ProjectTrainer | ReferenceTrainer) -> StepCost:
    """Computes the cost of the trainer's next batch."""
    batch = next(trainer.input)
    lengths_B = batch.unpooled[trainer.config.schema_.sequences[0]].lengths().double()
    num_new = int(batch.is_cold_B.sum())
    return step_cost(
        trainer.config,
        num_old=len(batch) - num_new,
        num_new=num_new,
        mean_length=float(lengths_B.sum()) / len(batch),
    )


def _generate_workload(
    folder: Path, overrides: tuple[str, ...], variants: list[Variant], small: bool
) -> Workload:
    """Writes random rows, enough for the largest batch, and the configuration for them."""
    tree = base_config_tree(max_length=8) if small else base_config_tree()
    workload = Workload.write(folder, tree, *(SMALL if small else ()), *overrides)
    batch_size = max(workload.config(variant).train.batch_size for variant in variants)
    large = RowSettings.of_batches(batch_size)
    rows = RowSettings(users=128, test_users=64, items=200) if small else large
    write_rows(folder, workload.config().schema_, rows)
    return workload


@contextmanager
def _open_bench(
    config: Path | None,
    overrides: tuple[str, ...],
    variants: list[Variant],
    device: str,
    out: Path,
    options: dict[str, Any],
) -> Iterator[Bench]:
    """Opens the process group and the workload, which lies in a temporary folder if generated."""
    with tempfile.TemporaryDirectory() as folder, process_group(device) as own_device:
        if config:
            workload = Workload(config, overrides)
            check_measurable(workload.config())
        else:
            workload = _generate_workload(Path(folder), overrides, variants, options["small"])
        encoders = fit_training_encoders(workload.config())
        results: Results = {
            "machine": describe_machine(own_device, options["threads"]),
            "command": " ".join(sys.argv[1:]),
        }
        yield Bench(workload, overrides, variants, encoders, own_device, out, options, results)


@click.command(cls=ToolCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--config", type=LOCAL_PATH, help="Measure on this one and its data, not on made rows."
)
@click.option(
    "--variant",
    "variants",
    multiple=True,
    help=(
        "NAME:section.key=value,... of this project. [default: ungrouped, grouped, each sampled; "
        "DMR alone; in bfloat16 too where there are units for it]"
    ),
)
@click.option(
    "--part",
    "parts",
    multiple=True,
    type=click.Choice([*PARTS, "fuxictr"]),
    help="Only this part.  [default: all]",
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option(
    "--threads", default=torch.get_num_threads(), show_default=True, help="Threads of a process."
)
@click.option("--repeats", default=5, show_default=True, help="Turns of each trainer.")
@click.option("--steps", default=4, show_default=True, help="Steps of a turn.")
@click.option("--seeds", default=3, show_default=True, help="Seeds of the AUC, epochs of FuxiCTR.")
@click.option("--epochs", default=3, show_default=True, help="Epochs of the AUC.")
@click.option(
    "--small", is_flag=True, help="A tiny model, to check that all runs; its results mean nothing."
)
@click.option(
    "--fuxictr-source",
    type=LOCAL_PATH,
    help="Checkout of FuxiCTR; also measures its DMR.",
)
@click.option(
    "--fuxictr-env",
    type=LOCAL_PATH,
    default=_FUXICTR_ENVIRONMENT,
    show_default="~/.cache",
    help="Folder of FuxiCTR's Python environment.",
)
@click.option(
    "--out",
    type=OUTPUT_DIR,
    default=Path("runs/bench"),
    show_default=True,
    help="Folder of the report.",
)
def main(
    overrides: tuple[str, ...],
    config: Path | None,
    variants: tuple[str, ...],
    parts: tuple[str, ...],
    device: str,
    out: Path,
    **options: Any,
) -> None:
    """Measure training speed. KEY=VALUE overrides the configuration of all trainers.

    \b
    python tools/bench.py --out runs/bench --part throughput --part breakdown
    """  # noqa: D301
    silence_third_parties()
    torch.set_num_threads(options["threads"])
    with_fuxictr = options["fuxictr_source"] is not None
    chosen_parts = parts or (*PARTS, *(["fuxictr"] if with_fuxictr else []))
    try:
        chosen = [Variant.parse(text) for text in variants] or default_variants(
            torch.device(device)
        )
        if "fuxictr" in chosen_parts:
            check_source(options["fuxictr_source"])
        out.mkdir(parents=True, exist_ok=True)
        with _open_bench(config, overrides, chosen, device, out, options) as bench:
            for part in chosen_parts:
                bench.run(part)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    click.echo(target_table(bench.results))


if __name__ == "__main__":
    main()
