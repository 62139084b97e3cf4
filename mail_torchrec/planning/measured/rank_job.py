"""Run of a job on one of its ranks: measures the plans one after the other, or the machine."""

from functools import partial
from pathlib import Path

from mail_torchrec.distributed.collectives import broadcast_from_rank_0, rank
from mail_torchrec.distributed.process_group import process_group
from mail_torchrec.planning.measured.calibration import measure_machine
from mail_torchrec.planning.measured.job import append_result, read_job
from mail_torchrec.planning.measured.plan_steps import measure_plan
from mail_torchrec.utils.logging import get_logger
from mail_torchrec.utils.spans import span

logger = get_logger(__name__)


def run_rank_job(folder: Path) -> None:
    """Runs a job as one of its ranks; rank 0 writes each result at once.

    Args:
        folder: of the job, which all ranks can read.

    Raises:
        ValueError: there is no job, or a plan cannot be trained by.
    """
    job = read_job(folder)
    with process_group(job.device, job.timeout) as device:
        if job.calibrates:
            with span("calibration"):
                measured = measure_machine(device)
            broadcast_from_rank_0(lambda: append_result(folder, measured.model_dump(mode="json")))
            return
        for number, planned in enumerate(job.plans, start=1):
            with span(f"plan {planned.name}"):
                result = measure_plan(planned, folder, job.steps, device)
            broadcast_from_rank_0(partial(append_result, folder, result))
            if rank() == 0:
                logger.info("measured %d of %d: %s", number, len(job.plans), planned.name)
