"""Tables in host memory: the tests of them, then their speed beside a table on the GPU.

On a CPU the project should refuse them.
"""

import shutil
from contextlib import ExitStack

from mail_torchrec.distributed.process_group import process_group
from mail_torchrec.train.assembly import assemble
from tools.benchmark.subprocess_trainer import SubprocessTrainer
from tools.benchmark.throughput import measure_in_turns
from tools.benchmark.trainers import workload_encoders
from tools.benchmark.workload import DMR, Variant, Workload, base_config_tree
from tools.gpu.checks.tests import OF_HOST_MEMORY, run_gpu_tests
from tools.gpu.rows import BATCH_SIZE, large_workload
from tools.gpu.stage import StageRun

_TABLE_ROWS = 10_000_000
"""With the optimizer's state 2.6 GB: far less than the GPU has free, as managed memory must be."""
_KERNELS = ("fused", "fused_uvm", "fused_uvm_caching")


def check(run: StageRun) -> None:
    """Runs the tests, and measures each kernel's rows a second."""
    run_gpu_tests(run, OF_HOST_MEMORY)
    if run.device == "cpu":
        _check_refused(run)
        return
    workload = _workload_of_a_large_table(run)
    with ExitStack() as processes:
        trainers = [
            processes.enter_context(
                SubprocessTrainer(workload, _variant(kernel), run.device, 4, name=kernel)
            )
            for kernel in _KERNELS
        ]
        speeds = measure_in_turns(trainers, repeats=2, steps=16)
    for kernel, speed in speeds.items():
        run.record(kernel, speed.as_dict(), text=f"{kernel} {speed.median:,.0f} rows/s")


def _workload_of_a_large_table(run: StageRun) -> Workload:
    """Returns the workload with a hashed item table, over one of the files of rows."""
    rows, folder = large_workload(run).path.parent, run.scratch / "uvm"
    for part in ("train", "test"):
        (folder / part).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(rows / part / "rows.parquet", folder / part / "rows.parquet")
    tree = base_config_tree(table_rows=_TABLE_ROWS)
    return Workload.write(folder, tree, f"train.batch_size={BATCH_SIZE}")


def _variant(kernel: str) -> Variant:
    return DMR.with_overrides(
        f"sharding.compute_kernels=[{kernel}]",
        "sharding.cache_load_factor=0.1",
        "data.num_workers=4",
    )


def _check_refused(run: StageRun) -> None:
    """Records whether each kernel of host memory is refused by name."""
    workload = large_workload(run)
    encoders = workload_encoders(workload)
    with process_group("cpu") as device:
        for kernel in _KERNELS[1:]:
            config = workload.config(_variant(kernel))
            try:
                assemble(config, encoders, device)
            except ValueError as error:
                named = kernel in str(error)
                run.record(kernel, str(error), ok=named, text=f"{kernel} is refused on a CPU")
            else:
                run.record(kernel, "", ok=False, text="should be refused on a CPU")
