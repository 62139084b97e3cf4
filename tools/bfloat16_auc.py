r"""Compares the AUC of training in bfloat16 and in float32, on a CPU without bfloat16 units.

    python tools/bfloat16_auc.py --config launch/configs/kuairand.yaml --seeds 2 \
        --out runs/bfloat16 data.root=FOLDER

Such a CPU multiplies bfloat16 matrices many times slower than float32 ones. So here inputs and
weights of each product are rounded to bfloat16, multiplied and summed in float32, and the product
is rounded to bfloat16, as AMX and tensor cores do. All the rest is `train.precision=bfloat16` as it
is. The AUC of a seed is compared with that in float32; the run directories stay.
"""

import sys
from pathlib import Path
from typing import Any

import click
import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

sys.path.insert(0, str(Path(__file__).parents[1]))

from mail_torchrec.cli.options import LOCAL_PATH, OUTPUT_DIR
from mail_torchrec.config import load_config
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from mail_torchrec.utils.logging import silence_third_parties
from tools.tool_command import ToolCommand

_MATMULS = (torch.matmul, torch.mm, torch.Tensor.matmul, torch.Tensor.mm, torch.Tensor.__matmul__)
_PRECISIONS = ("float32", "bfloat16")


class RoundedProducts(TorchFunctionMode):
    """Computes products of bfloat16 matrices in float32, under autocast."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Intercepts one call of PyTorch."""
        kwargs = kwargs or {}
        if function not in (functional.linear, *_MATMULS) or not torch.is_autocast_enabled("cpu"):
            return function(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            rounded_args = [_round(part) for part in args]
            rounded_kwargs = {name: _round(part) for name, part in kwargs.items()}
            return function(*rounded_args, **rounded_kwargs).bfloat16()


def _round(part: Any) -> Any:
    return part.bfloat16().float() if isinstance(part, torch.Tensor) else part


@click.command(
    cls=ToolCommand, help=__doc__, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option(
    "--config",
    type=LOCAL_PATH,
    required=True,
    help="As for mail-torchrec train.",
)
@click.option(
    "--seeds", type=click.IntRange(1), default=2, show_default=True, help="Runs a precision."
)
@click.option("--out", type=OUTPUT_DIR, required=True, help="Folder of the run directories.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def main(config: Path, seeds: int, out: Path, overrides: tuple[str, ...]) -> None:
    """Trains each seed in both precisions."""
    silence_third_parties()
    differences = []
    for seed in range(1, seeds + 1):
        metrics = {}
        for precision in _PRECISIONS:
            own = [f"train.seed={seed}", f"train.precision={precision}"]
            settings = load_config(config, [*overrides, *own])
            with RoundedProducts():
                metrics[precision] = train(settings, RunDir(out / f"{precision}-{seed}"))
        for cohort in ("all", "new", "old"):
            in_float32, in_bfloat16 = (
                metrics[precision][cohort]["auc"] or float("nan") for precision in _PRECISIONS
            )
            differences.append(abs(in_bfloat16 - in_float32))
            click.echo(
                f"seed {seed}, {cohort} users: AUC {in_float32:.4f} in float32, "
                f"{in_bfloat16:.4f} in bfloat16 ({in_bfloat16 - in_float32:+.4f})"
            )
    click.echo(f"the greatest difference is {max(differences):.4f}")


if __name__ == "__main__":
    main()
