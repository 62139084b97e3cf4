r"""What training in bfloat16 does to the AUC, on a CPU that has no units for it.

    python tools/bfloat16_auc.py --config launch/configs/kuairand.yaml --seeds 2 --out runs/bfloat16
    data.root=FOLDER

Such a CPU multiplies bfloat16 matrices many times slower than float32 ones. So here inputs and
weights of each product are rounded to bfloat16, multiplied and summed up in float32, and the
product is rounded to bfloat16: what AMX and tensor cores do. All the rest is
`train.precision=bfloat16` as it is. The figures of a seed are compared with those of float32; the
run directories stay.
"""

import sys
from pathlib import Path
from typing import Any

import click
import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

sys.path.insert(0, str(Path(__file__).parents[1]))

from mail_torchrec.config import load_config
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from mail_torchrec.utils.logging import quiet_third_parties

_MATMULS = (torch.matmul, torch.mm, torch.Tensor.matmul, torch.Tensor.mm, torch.Tensor.__matmul__)


class RoundedProducts(TorchFunctionMode):
    """Under autocast, products of bfloat16 matrices by way of float32."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """One call of PyTorch."""
        if function not in (functional.linear, *_MATMULS) or not torch.is_autocast_enabled("cpu"):
            return function(*args, **(kwargs or {}))
        with torch.autocast("cpu", enabled=False):
            rounded = [
                part.bfloat16().float() if isinstance(part, torch.Tensor) else part
                for part in (*args, *(kwargs or {}).values())
            ]
            return function(
                *rounded[: len(args)], **dict(zip(kwargs or {}, rounded[len(args) :], strict=True))
            ).bfloat16()


@click.command(help=__doc__, context_settings={"ignore_unknown_options": True})
@click.option("--config", type=click.Path(path_type=Path), required=True)
@click.option("--seeds", type=click.IntRange(1), default=2, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.argument("overrides", nargs=-1)
def main(config: Path, seeds: int, out: Path, overrides: tuple[str, ...]) -> None:
    """Trains each seed in both precisions."""
    quiet_third_parties()
    differences = []
    for seed in range(1, seeds + 1):
        found = {}
        for precision in ("float32", "bfloat16"):
            settings = load_config(
                config, [*overrides, f"train.seed={seed}", f"train.precision={precision}"]
            )
            with RoundedProducts():
                found[precision] = train(settings, RunDir(out / f"{precision}-{seed}"))
        for part in ("all", "new", "old"):
            one, other = (
                found[precision][part]["auc"] or float("nan")
                for precision in ("float32", "bfloat16")
            )
            differences.append(abs(other - one))
            click.echo(
                f"seed {seed}, {part} users: AUC {one:.4f} in float32, {other:.4f} in bfloat16 "
                f"({other - one:+.4f})"
            )
    click.echo(f"the greatest difference is {max(differences):.4f}")


if __name__ == "__main__":
    main()
