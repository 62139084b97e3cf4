r"""How fast training is, in one run: this trainer and a direct reference in turns, and what the machine could do at most.

    # all of it, about half an hour on 2 cores
    python tools/bench.py --out runs/bench                   
    python tools/bench.py --out runs/bench --part sides        # rows a second alone
    python tools/bench.py --out runs/bench --part peer --peer fuxictr --peer-source CHECKOUT
    --threads 1 \
        --config launch/configs/kuairand.yaml data.root=FOLDER

``bench.json``, ``bench.md``, ``bench.html`` and pictures are written anew after each part.
``benchmark/`` holds the parts.
"""

import os
import platform
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

sys.path.insert(
    0, str(Path(__file__).parents[1])
)  # for `tools.benchmark`, wherever this is started

from mail_torchrec.data.encoders import Encoders
from mail_torchrec.distributed.process_group import process_group
from mail_torchrec.utils.logging import quiet_third_parties
from tools.benchmark.apart import Apart
from tools.benchmark.counts import step_counts
from tools.benchmark.growth import Growth
from tools.benchmark.interleaved import interleaved
from tools.benchmark.limits import machine_limits
from tools.benchmark.peer import beside_peer, check_source
from tools.benchmark.quality import qualities
from tools.benchmark.reading import reader_rates
from tools.benchmark.report import verdict_table, write_report
from tools.benchmark.rows import RowSettings, write_rows
from tools.benchmark.setting import DEFAULTS, DMR, GROUPED, SMALL, Setting, Variant, base_tree
from tools.benchmark.sides import encoders_of, side_of
from tools.benchmark.split import split
from tools.benchmark.verdicts import Results

PARTS = ("limits", "sides", "split", "reader", "growth", "quality")
"""In this order; ``peer`` comes behind them where it is asked for."""


@dataclass
class Bench:
    """A run: what all parts share, and what they found."""

    setting: Setting
    overrides: tuple[str, ...]
    variants: list[Variant]
    encoders: Encoders
    device: torch.device
    out: Path
    options: dict[str, Any]
    """The command line's numbers."""
    results: Results

    def run(self, part: str) -> None:
        """Measures one part and writes the report."""
        click.echo(f"{part} ...")
        getattr(self, part)()
        write_report(self.results, self.out)

    def limits(self) -> None:
        """The machine's own."""
        self.results["limits"] = machine_limits(self.device, small=self.options["small"])

    def sides(self) -> None:
        """The trainer's variants and the reference, in turns."""
        device, threads = self.device.type, self.options["threads"]
        with ExitStack() as processes:
            sides = [
                processes.enter_context(Apart(self.setting, variant, device, threads))
                for variant in (*self.variants, None)
            ]
            rates = interleaved(sides, repeats=self.options["repeats"], steps=self.options["steps"])
        self.results["sides"] = {name: rate.as_dict() for name, rate in rates.items()}

    def split(self) -> None:
        """Where a step's time goes, and what it has to do by formula."""
        self.results["split"], self.results["counts"] = {}, {}
        for side in self._sides():
            for _ in range(2):
                side.step()
            self.results["split"][side.name] = split(side, self.options["steps"])
            batch = side.input.take()
            lengths_B = batch.unpooled[side.config.schema_.sequences[0]].lengths().double()
            num_new = int(batch.is_cold_B.sum())
            counted = step_counts(
                side.config,
                num_old=len(batch) - num_new,
                num_new=num_new,
                mean_length=float(lengths_B.sum()) / len(batch),
            )
            self.results["counts"][side.name] = vars(counted)

    def reader(self) -> None:
        """The reader alone."""
        self.results["reader"] = reader_rates(users=2_048 if self.options["small"] else 65_536)

    def growth(self) -> None:
        """Batch, T, table rows, ranks; the first variant that groups users, or the first."""
        variant = next(
            (variant for variant in self.variants if variant.name == GROUPED.name), self.variants[0]
        )
        threads, repeats, steps, small = (
            self.options[name] for name in ("threads", "repeats", "steps", "small")
        )
        growth = Growth(
            variant, self.overrides, threads, self.device.type, repeats, steps, small, click.echo
        )
        self.results["growth"] = growth.measure()

    def quality(self) -> None:
        """AUC of all sides but DMR alone."""
        variants = [variant for variant in self.variants if variant.name != DMR.name]
        numbers = {"seeds": self.options["seeds"], "epochs": self.options["epochs"]}
        self.results["quality"] = qualities(
            self.setting, variants, self.device, self.encoders, **numbers, say=click.echo
        )

    def peer(self) -> None:
        """Another project's DMR."""
        source, cache = check_source(self.options["peer_source"]), self.options["peer_env"]
        threads, repeats = self.options["threads"], self.options["seeds"]
        self.results["peer"] = beside_peer(
            self.setting,
            self.encoders,
            source,
            cache,
            repeats=repeats,
            threads=threads,
            say=click.echo,
        )

    def _sides(self) -> list[Any]:
        return [
            side_of(self.setting, variant, self.device, self.encoders)
            for variant in (*self.variants, None)
        ]


def _generated(folder: Path, overrides: tuple[str, ...], small: bool) -> Setting:
    """Random rows, and the setting that they are for."""
    tree = base_tree(max_length=8) if small else base_tree()
    setting = Setting.written(folder, tree, *(SMALL if small else ()), *overrides)
    write_rows(
        folder,
        setting.config().schema_,
        RowSettings(users=128, test_users=64, items=200) if small else RowSettings(),
    )
    return setting


def _machine(device: torch.device, threads: int) -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    processor = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
    if device.type == "cuda":
        processor = torch.cuda.get_device_name(device)
    capability = "" if device.type == "cuda" else f" ({torch.backends.cpu.get_cpu_capability()})"
    found = {
        "device": device.type,
        "processor": processor + capability,
        "threads": threads,
        "cores": os.cpu_count(),
    }
    return found | {"torch": torch.__version__, "python": platform.python_version()}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("overrides", nargs=-1)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="Measure on this configuration and its data instead of generated rows.",
)
@click.option(
    "--variant",
    "variants",
    multiple=True,
    help=(
        "NAME:section.key=value,... of the trainer. [default: ungrouped, grouped, each sampled; "
        "DMR alone]"
    ),
)
@click.option(
    "--part",
    "parts",
    multiple=True,
    type=click.Choice([*PARTS, "peer"]),
    help="Only this part.  [default: all]",
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option(
    "--threads", default=torch.get_num_threads(), show_default=True, help="Threads of a process."
)
@click.option("--repeats", default=5, show_default=True, help="Turns of each side.")
@click.option("--steps", default=4, show_default=True, help="Steps of a turn.")
@click.option("--seeds", default=3, show_default=True, help="Of the AUC, and epochs beside a peer.")
@click.option("--epochs", default=3, show_default=True, help="Of the AUC.")
@click.option(
    "--small", is_flag=True, help="A tiny model, to see that all works; its figures mean nothing."
)
@click.option("--peer", type=click.Choice(["fuxictr"]), help="Also measure another project's DMR.")
@click.option("--peer-source", type=click.Path(path_type=Path), help="Checkout of its repository.")
@click.option("--peer-env", type=click.Path(path_type=Path), default=Path.home() / ".cache/mail-torchrec/fuxictr", show_default="~/.cache",
              help="Where its environment is made.")  # fmt: skip
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/bench"),
    show_default=True,
    help="Folder of the report.",
)
def main(overrides: tuple[str, ...], config: Path | None, variants: tuple[str, ...], parts: tuple[str, ...], device: str, out: Path,
         peer: str | None, **options: Any) -> None:  # fmt: skip
    """Measure the training. OVERRIDES (section.key=value) hold for all sides."""
    quiet_third_parties()
    torch.set_num_threads(options["threads"])
    try:
        chosen = [Variant.parse(text) for text in variants] or list(DEFAULTS)
        if peer:
            check_source(options["peer_source"])
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder, process_group(device) as of:
            setting = (
                Setting(config, overrides)
                if config
                else _generated(Path(folder), overrides, options["small"])
            )
            encoders = encoders_of(setting.config())
            results: Results = {
                "machine": _machine(of, options["threads"]),
                "command": " ".join(sys.argv[1:]),
            }
            bench = Bench(setting, overrides, chosen, encoders, of, out, options, results)
            for part in parts or (*PARTS, *(["peer"] if peer else [])):
                bench.run(part)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    click.echo(verdict_table(bench.results))


if __name__ == "__main__":
    main()
