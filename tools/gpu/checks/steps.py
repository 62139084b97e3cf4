"""Some steps of a tiny model; what the stage ``sanitizer`` watches."""

from mail_torchrec.distributed.process_group import process_group
from mail_torchrec.utils.logging import silence_third_parties
from tools.benchmark.trainers import ProjectTrainer, workload_encoders
from tools.benchmark.workload import GROUPED
from tools.gpu.rows import small_workload
from tools.gpu.stage import StageRun

_STEPS = 2


def check(run: StageRun) -> None:
    """Trains them."""
    silence_third_parties()
    with process_group(run.device) as device:
        workload = small_workload(run)
        encoders = workload_encoders(workload)
        trainer = ProjectTrainer(workload, GROUPED, device, encoders)
        rows = sum(trainer.step() for _ in range(_STEPS))
        run.record("steps", _STEPS, text=f"{_STEPS} steps, {rows} rows")
