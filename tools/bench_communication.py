"""Measures the bytes that ranks exchange in each number format, and the AUC that is trained so.

    python tools/bench_communication.py --out tools/results/communication.md

Two gloo ranks train on the rows of a synthetic world, with several seeds in each format. Counted
are the bytes that a rank hands to collectives for other ranks, in a step. AUC is that of the test
rows, its difference from float32 paired by seed, with Student's 95 % interval.
"""

import os
import socket
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import click
import torch
import torch.multiprocessing as mp
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `tools.tool_command`

from mail_torchrec.cli.options import OUTPUT_FILE
from mail_torchrec.config import load_config
from mail_torchrec.reporting.intervals import seed_interval
from mail_torchrec.synthetic.writer import WorldSettings, write_world
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.train.trainer import train
from mail_torchrec.utils.logging import silence_third_parties
from mail_torchrec.utils.spans import current_span
from tools.tool_command import ToolCommand

FORMATS = {
    "fp32": "null",
    "fp32, perturbed": "null",
    "fp16": "{forward: fp16, backward: fp16}",
    "bf16": "{forward: bf16, backward: bf16}",
    "bf16, dense too": "{forward: bf16, backward: bf16, dense_gradients: bf16}",
}
"""Name -> ``sharding.communication``. The second one has a learning rate that is greater by a
millionth: what that changes is what chance changes."""
_LEARNING_RATE = 0.002
PARTS = ("ids", "vectors", "gradients of vectors", "gradients of towers", "other")
_CONFIG = Path(__file__).parents[1] / "launch/configs/synthetic.yaml"
_RANKS = 2


class ExchangedBytes(TorchDispatchMode):
    """Counts the bytes that this rank hands to collectives for other ranks, by part and step."""

    def __init__(self) -> None:
        super().__init__()
        self.totals: dict[str, int] = defaultdict(int)
        self.steps: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Intercepts one operator."""
        if func.namespace == "c10d":
            self._count(func.overloadpacket.__name__, args)
        return func(*args, **(kwargs or {}))

    def _count(self, name: str, args: tuple[Any, ...]) -> None:
        place = current_span().name
        if not place.startswith("training") or ", step " not in place:
            return
        self.steps.add(place.split(", step ")[0] + place.split(", step ")[1].split(",")[0])
        num_bytes, values = sent_bytes(name, args)
        if values is not None:
            self.totals[_part(name, values, place)] += num_bytes


def sent_bytes(name: str, args: tuple[Any, ...]) -> tuple[int, Tensor | None]:
    """Returns the bytes that a collective sends to other ranks, and a tensor [...] of them.

    Args:
        name: of the operator in ``torch.ops.c10d``.
        args: of the call.
    """
    size, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    if name == "alltoall_base_":
        values, splits = args[1], args[4]
        kept = splits[rank] / max(sum(splits), 1) if splits else 1 / size
        return round(values.nbytes * (1 - kept)), values
    if name == "alltoall_":
        return sum(part.nbytes for at, part in enumerate(args[1]) if at != rank), args[1][0]
    if name == "allreduce_":  # a ring sends each value twice, to and fro
        return 2 * (size - 1) * sum(part.nbytes for part in args[0]) // size, args[0][0]
    if name == "_reduce_scatter_base_":
        return args[1].nbytes * (size - 1) // size, args[1]
    if name == "reduce_scatter_":
        parts = args[1][0]
        return sum(part.nbytes for at, part in enumerate(parts) if at != rank), parts[0]
    if name == "_allgather_base_":
        return args[1].nbytes * (size - 1), args[1]
    if name == "allgather_":
        return sum(part.nbytes for part in args[1]) * (size - 1), args[1][0]
    return 0, None


def _part(name: str, values: Tensor, place: str) -> str:
    if not values.is_floating_point():
        return "ids"
    if place.endswith("communication"):  # batch normalisation, L_d
        return "other"
    if name == "allreduce_":
        return "gradients of towers"
    return "gradients of vectors" if ", backward" in place else "vectors"


def train_rank(rank: int, port: int, overrides: list[str], folder: str, results: Any) -> None:
    """Trains as one of the ranks; puts bytes of a step by part, and the AUC of all ranks."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank)}
    os.environ |= {"LOCAL_RANK": str(rank), "WORLD_SIZE": str(_RANKS)}
    os.environ["LOCAL_WORLD_SIZE"] = str(_RANKS)
    torch.set_num_threads(1)
    silence_third_parties()
    with ExchangedBytes() as counted:
        metrics = train(load_config(_CONFIG, overrides), RunDir(Path(folder)))
    of_step = {part: counted.totals[part] / len(counted.steps) for part in PARTS}
    results.put({"bytes": of_step, "auc": metrics["all"]["auc"]})


def run(overrides: list[str], folder: Path) -> dict[str, Any]:
    """Trains once on fresh processes; returns the ranks' mean bytes of a step, and the AUC."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["mail_torchrec.train.trainer"])
    results = context.SimpleQueue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = port, overrides, str(folder), results
    mp.start_processes(train_rank, arguments, nprocs=_RANKS, start_method="forkserver")
    found: list[dict[str, Any]] = [results.get() for _ in range(_RANKS)]
    means = {part: statistics.mean(one["bytes"][part] for one in found) for part in PARTS}
    return {"bytes": means, "auc": found[0]["auc"]}


def report(found: dict[str, list[dict[str, Any]]], command: str, world: str) -> str:
    """Formats bytes and AUC of all formats as Markdown."""
    lines = [f"# Number formats of the exchange between ranks\n\n`{command}`\n\n{world}\n"]
    lines.append(f"| format | {' | '.join(PARTS)} | KiB a step | AUC | from fp32 |")
    lines.append("| --- |" + " ---: |" * (len(PARTS) + 3))
    base = [run["auc"] for run in found["fp32"]]
    for name, runs in found.items():
        kib = [runs[0]["bytes"][part] / 1024 for part in PARTS]
        aucs = [run["auc"] for run in runs]
        interval = seed_interval([one - other for one, other in zip(aucs, base, strict=True)])
        sums = [f"{value:,.1f}" for value in (*kib, sum(kib))]
        difference = "" if name == "fp32" else _difference(interval)
        lines.append(
            f"| {name} | {' | '.join(sums)} | {statistics.mean(aucs):.4f} | {difference} |"
        )
    return "\n".join(lines) + "\n"


def _difference(interval: Any) -> str:
    if interval is None:
        return "one seed"
    if interval.low is None:
        return f"{interval.mean:+.4f}"
    return f"{interval.mean:+.4f} ({interval.low:+.4f} to {interval.high:+.4f})"


@click.command(
    cls=ToolCommand, help=__doc__, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option("--users", type=click.IntRange(10), default=2000, show_default=True)
@click.option(
    "--seeds", type=click.IntRange(1), default=3, show_default=True, help="Runs a format."
)
@click.option(
    "--plan",
    type=click.Choice(["table_wise", "column_wise", "row_wise"]),
    default="row_wise",
    show_default=True,
    help="Sharding type of all tables.",
)
@click.option("--out", type=OUTPUT_FILE, help="Markdown file to write.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def main(users: int, seeds: int, plan: str, out: Path | None, overrides: tuple[str, ...]) -> None:
    """Trains each seed in each format."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        write_world(WorldSettings(users=users), Path(folder) / "world")
        for seed in range(1, seeds + 1):
            for name, communication in FORMATS.items():
                own = [f"data.root={folder}/world", f"train.seed={seed}", "train.device=cpu"]
                own += [f"sharding.sharding_types=[{plan}]", "train.batch_size=128"]
                own += [f"sharding.communication={communication}", "model.zero_shot=null"]
                rate = _LEARNING_RATE * (1 + 1e-6 * (name == "fp32, perturbed"))
                own.append(f"train.learning_rate={rate}")
                run_dir = Path(folder) / f"{seed}-{len(found)}-{name.replace(' ', '')}"
                found[name].append(run([*own, *overrides], run_dir))
                click.echo(f"seed {seed}, {name}: {found[name][-1]}")
    command = " ".join(["python tools/bench_communication.py", *sys.argv[1:]])
    world = (
        f"{_RANKS} gloo ranks, {plan} plan, {users:,} users of the synthetic world, {seeds} seeds, "
        f"torch {torch.__version__}. KiB that a rank sends in a step."
    )
    text = report(found, command, world)
    click.echo(text)
    if out is not None:
        out.write_text(text)


if __name__ == "__main__":
    main()
