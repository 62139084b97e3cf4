"""How fast training is: this trainer, a direct reference and the machine's own limits, in one run.

python tools/bench.py --out runs/bench
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import click
import torch

from mail_torchrec.quiet import quiet_third_parties
from mail_torchrec.train.runtime import process_group
from tools.benchmark.interleaved import Ratio, interleaved
from tools.benchmark.rows import RowSettings, write_rows
from tools.benchmark.setting import GROUPED, UNGROUPED, Setting, Variant, base_tree
from tools.benchmark.sides import REFERENCE, DirectReference, Trainer, encoders_of


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("overrides", nargs=-1)
@click.option("--config", type=click.Path(path_type=Path), help="Measure on this configuration and its data instead of generated rows.")
@click.option("--variant", "variants", multiple=True, help="NAME:section.key=value,... of the trainer; by default ungrouped and grouped.")
@click.option("--repeats", default=5, show_default=True, help="Turns of each side.")
@click.option("--steps", default=4, show_default=True, help="Steps of a turn.")
@click.option("--threads", default=torch.get_num_threads(), show_default=True, help="Threads of a process.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/bench"), show_default=True, help="Folder of the report.")
def main(
    overrides: tuple[str, ...], config: Path | None, variants: tuple[str, ...], repeats: int, steps: int, threads: int, out: Path
) -> None:
    """Measure the training. OVERRIDES (section.key=value) hold for all sides."""
    quiet_third_parties()
    torch.set_num_threads(threads)
    chosen = [Variant.parse(text) for text in variants] or [UNGROUPED, GROUPED]
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, process_group("cpu") as device:
        if config is None:
            setting = Setting.written(Path(folder), base_tree(), *overrides)
            write_rows(Path(folder), setting.config().schema_, RowSettings())
        else:
            setting = Setting(config, overrides)
        encoders = encoders_of(setting.config())
        sides: list[Any] = [Trainer(setting, variant, device, encoders) for variant in chosen]
        sides.append(DirectReference(setting, device, encoders))
        rates = interleaved(sides, repeats=repeats, steps=steps)
    for name, rate in rates.items():
        against = f"   {Ratio.of(rate, rates[REFERENCE])} x reference" if name != REFERENCE else ""
        click.echo(
            f"{name:>16} {rate.median:10,.0f} rows/s {1000 * rate.seconds_per_step:9.1f} ms a step, "
            f"input wait {rate.input_share:5.1%}{against}"
        )
    (out / "bench.json").write_text(json.dumps({name: rate.as_dict() for name, rate in rates.items()}, indent=2))


if __name__ == "__main__":
    main()
