"""Profiles some steps of FuxiCTR's DMR, beside those of this project."""

import json
import tempfile
from pathlib import Path
from typing import Any

from mail_torchrec.data.encoders import Encoders
from tools.benchmark.fuxictr.comparison import (
    NAME,
    VERSION,
    check_source,
    prepare_environment,
    run_epoch,
)
from tools.benchmark.fuxictr.rows import write_fuxictr_rows
from tools.benchmark.profile.summary import summarise
from tools.benchmark.profile.trace import read_operations
from tools.benchmark.workload import DMR, Workload


def add_fuxictr_profile(
    profiles: dict[str, Any], workload: Workload, encoders: Encoders, options: dict[str, Any]
) -> None:
    """Adds the profile of FuxiCTR's DMR to those of the other trainers.

    Args:
        profiles: of ``step_profile.py``.
        workload: data, columns, towers.
        encoders: fitted on the training rows.
        options: of the command line: source, environment, threads, steps.
    """
    steps: int = options["steps"]
    source, python = (
        check_source(options["fuxictr_source"]),
        prepare_environment(options["fuxictr_env"]),
    )
    with tempfile.TemporaryDirectory() as folder:
        rows, trace = Path(folder), Path(folder) / "trace.json"
        write_fuxictr_rows(rows, workload.config(DMR), encoders, options["threads"])
        times = run_epoch(python, rows, source, 1, str(trace), str(steps))
        operations = read_operations(json.loads(trace.read_bytes()))
    seconds = {name: value / steps for name, value in times.items()}
    profiles["trainers"][f"{NAME} {VERSION}, DMR"] = seconds | summarise(operations, steps)
