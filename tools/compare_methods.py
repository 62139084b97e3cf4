"""Trains BaseDNN, DMR, MAIL on both and their oracles over several seeds, and compares them.

    python tools/compare_methods.py --config launch/configs/kuairand.yaml --out runs/kuairand --seeds 5 data.root=...

Each run is a process of its own, ``--jobs`` of them side by side; a finished run is not repeated, so an interrupted comparison goes
on where it stopped. Writes comparison.md, comparison.json and comparison.png into ``--out``.
"""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
from tqdm import tqdm

from mail_torchrec.config import dump_config, load_config
from mail_torchrec.train.pictures import write_comparison
from mail_torchrec.train.report import as_markdown, compare

ORACLE = ["data.cold_start.oracle=true"]
TOWERS = {"BaseDNN": ["model.tower=base_dnn"], "DMR": ["model.tower=dmr"]}
"""Name -> overrides that choose the ranking tower."""


def methods(towers: tuple[str, ...]) -> dict[str, dict[str, list[str]]]:
    """Family -> method -> overrides; the first method of a family is its base."""
    families = {}
    for tower in towers:
        overrides = TOWERS[tower]
        plain = [*overrides, "model.zero_shot=null"]
        families[tower] = {
            tower: plain,
            f"MAIL-{tower}": overrides,
            f"{tower} oracle": [*plain, *ORACLE],
            f"MAIL-{tower} oracle": [*overrides, *ORACLE],
        }
    return families


def train(config: Path, run_dir: Path, overrides: list[str], threads: int) -> None:
    """One run in a process of its own, unless it is finished.

    Raises:
        RuntimeError: the run failed; its output is in the file that the message names.
    """
    if (run_dir / "metrics.json").exists():
        if (run_dir / "config.yaml").read_text() != dump_config(load_config(config, overrides)):
            raise ValueError(f"{run_dir} was trained with another configuration; choose another --out, or delete it")
        return
    shutil.rmtree(run_dir, ignore_errors=True)
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    log = run_dir.with_suffix(".log")
    command = [sys.executable, "-m", "mail_torchrec", "train", "--config", str(config), "--run-dir", str(run_dir), *overrides]
    with log.open("w") as output:
        finished = subprocess.run(command, stdout=output, stderr=output, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, check=False)
    if finished.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {finished.returncode}; its output is in {log}")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", type=click.Path(exists=True, path_type=Path), required=True, help="The configuration that all runs share.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the runs and of the comparison.")
@click.option("--seeds", default=5, show_default=True, help="Runs a method, train.seed = 1, 2, ...")
@click.option("--tower", "towers", type=click.Choice(list(TOWERS)), multiple=True, default=list(TOWERS), show_default=True)
@click.option("--jobs", default=os.cpu_count() or 1, show_default=True, help="Runs side by side.")
@click.option("--threads", default=1, show_default=True, help="Threads a run.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def main(config: Path, out: Path, seeds: int, towers: tuple[str, ...], jobs: int, threads: int, overrides: tuple[str, ...]) -> None:
    """Compare BaseDNN, DMR, MAIL-BaseDNN, MAIL-DMR and the oracle of each."""
    families = methods(towers)
    runs = [
        (out / name.replace(" ", "-") / f"seed-{seed}", [f"name={name}", f"train.seed={seed}", *chosen, *overrides])
        for seed in range(1, seeds + 1)
        for family in families.values()
        for name, chosen in family.items()
    ]
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(runs), unit="run") as bar:
        for future in [pool.submit(train, config, run_dir, chosen, threads) for run_dir, chosen in runs]:
            future.result()
            bar.update()
    text = ""
    for base, family in families.items():
        text += as_markdown(compare([run_dir for run_dir, chosen in runs if chosen[0].removeprefix("name=") in family], base)) + "\n"
    rows = compare([run_dir for run_dir, _ in runs])
    click.echo("\n".join([text, *map(str, write_comparison(rows, text, out))]))


if __name__ == "__main__":
    main()
