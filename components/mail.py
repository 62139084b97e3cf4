r"""TorchX components: jobs on this machine, on Slurm, Kubernetes or AWS Batch.

    torchx run -s local_cwd components/mail.py:train --config launch/configs/synthetic.yaml \
        --run_dir runs/a -- train.epochs=2
    torchx run -s slurm components/mail.py:train --config my.yaml --run_dir /shared/runs/a \
        --j 4x8 --gpu 8 --cpu 64 --max_retries 5

TorchX starts the ``torchrun`` that it finds on PATH, so activate the environment first. It reads
the help from the signatures and the docstrings below, and knows ``Dict``, ``List``, ``Optional``.
"""

import re
from typing import Any, Dict, List, Optional

from torchx.components.dist import ddp
from torchx.specs import AppDef, Role, parse_mounts, resource


def train(
    config: str,
    run_dir: str,
    *overrides: str,
    resume: bool = False,
    max_retries: int = 0,
    max_restarts: int = 0,
    j: str = "1x2",
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,
    h: Optional[str] = None,
    image: str = "mail-torchrec:latest",
    mounts: Optional[List[str]] = None,
    env: Optional[Dict[str, str]] = None,
    rdzv_port: int = 29500,
) -> AppDef:
    """Trains a model and evaluates it: mail-torchrec train on every rank.

    Args:
        config: the YAML configuration, where the ranks can read it
        run_dir: the directory to write, on storage that all hosts share; not yet holding a run,
            unless resumed
        overrides: after "--", configuration values as section.key=value (train.batch_size=4096)
        resume: True goes on with the unfinished run in run_dir, from its newest good checkpoint
        max_retries: times that the scheduler may start the whole job again after it failed (Slurm:
            requeue); more than 0 implies resume
        max_restarts: times that torchrun may start all ranks again, on the hosts it has, after it
            lost one; they go on as with resume
        j: hosts x ranks a host, such as 1x2 or 4x8
        cpu: CPU cores a host
        gpu: GPUs a host; at least the ranks a host where the model trains on GPUs
        memMB: memory a host, MB
        h: a resource registered with TorchX, in place of cpu, gpu and memMB
        image: the container image, for schedulers that run one
        mounts: storage, as type=volume,src=CLAIM (or EFS),dst=/data or type=bind,src=PATH,dst=PATH
        env: environment variables of the ranks, such as OMP_NUM_THREADS=8
        rdzv_port: the port on the first host where several hosts meet
    """
    placement: Dict[str, Any] = dict(
        j=j, cpu=cpu, gpu=gpu, memMB=memMB, h=h, image=image, mounts=mounts, env=env,
        rdzv_port=rdzv_port,
    )  # fmt: skip
    _check_local(config=config, run_dir=run_dir)
    # A job that Kubernetes or AWS Batch starts again is not told so.
    flags = ["--resume"] if resume or max_retries else []
    arguments = ["--config", config, "--run-dir", run_dir, *flags, *overrides]
    return _torchrun(
        "train", *arguments, max_retries=max_retries, max_restarts=max_restarts, **placement
    )


def evaluate(
    run_dir: str,
    data: str,
    *arguments: str,
    max_retries: int = 0,
    j: str = "1x1",
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,
    h: Optional[str] = None,
    image: str = "mail-torchrec:latest",
    mounts: Optional[List[str]] = None,
    env: Optional[Dict[str, str]] = None,
    rdzv_port: int = 29500,
) -> AppDef:
    """Evaluates a finished run on other data: mail-torchrec evaluate on every rank.

    Args:
        run_dir: the directory of a finished run
        data: the Parquet data to score, in the schema of the run
        arguments: after "--", further arguments of mail-torchrec evaluate
        max_retries: times that the scheduler may start the job again after it failed
        j: hosts x ranks a host, such as 1x2 or 4x8
        cpu: CPU cores a host
        gpu: GPUs a host; at least the ranks a host where the model runs on GPUs
        memMB: memory a host, MB
        h: a resource registered with TorchX, in place of cpu, gpu and memMB
        image: the container image, for schedulers that run one
        mounts: storage, as type=volume,src=CLAIM (or EFS),dst=/data or type=bind,src=PATH,dst=PATH
        env: environment variables of the ranks, such as OMP_NUM_THREADS=8
        rdzv_port: the port on the first host where several hosts meet
    """
    placement: Dict[str, Any] = dict(
        j=j, cpu=cpu, gpu=gpu, memMB=memMB, h=h, image=image, mounts=mounts, env=env,
        rdzv_port=rdzv_port,
    )  # fmt: skip
    _check_local(run_dir=run_dir)
    words = ["--run-dir", run_dir, "--data", data, *arguments]
    return _torchrun("evaluate", *words, max_retries=max_retries, **placement)


def predict(
    run_dir: str,
    data: str,
    out: str,
    *arguments: str,
    max_retries: int = 0,
    j: str = "1x1",
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,
    h: Optional[str] = None,
    image: str = "mail-torchrec:latest",
    mounts: Optional[List[str]] = None,
    env: Optional[Dict[str, str]] = None,
    rdzv_port: int = 29500,
) -> AppDef:
    """Writes the probabilities of rows as Parquet: mail-torchrec predict on every rank.

    Args:
        run_dir: the directory of a finished run
        data: the Parquet data to score, in the schema of the run; labels are not needed
        out: the directory to write, which must not exist, on storage that all hosts share
        arguments: after "--", further arguments of mail-torchrec predict
        max_retries: times that the scheduler may start the job again after it failed
        j: hosts x ranks a host, such as 1x2 or 4x8
        cpu: CPU cores a host
        gpu: GPUs a host; at least the ranks a host where the model runs on GPUs
        memMB: memory a host, MB
        h: a resource registered with TorchX, in place of cpu, gpu and memMB
        image: the container image, for schedulers that run one
        mounts: storage, as type=volume,src=CLAIM (or EFS),dst=/data or type=bind,src=PATH,dst=PATH
        env: environment variables of the ranks, such as OMP_NUM_THREADS=8
        rdzv_port: the port on the first host where several hosts meet
    """
    placement: Dict[str, Any] = dict(
        j=j, cpu=cpu, gpu=gpu, memMB=memMB, h=h, image=image, mounts=mounts, env=env,
        rdzv_port=rdzv_port,
    )  # fmt: skip
    _check_local(run_dir=run_dir, out=out)
    words = ["--run-dir", run_dir, "--data", data, "--out", out, *arguments]
    return _torchrun("predict", *words, max_retries=max_retries, **placement)


def plan(
    config: str,
    out: str,
    *arguments: str,
    cpu: int = 2,
    memMB: int = 8192,
    h: Optional[str] = None,
    image: str = "mail-torchrec:latest",
    mounts: Optional[List[str]] = None,
    env: Optional[Dict[str, str]] = None,
) -> AppDef:
    """Plans the sharding of the tables, in one process and without GPUs: mail-torchrec plan.

    Args:
        config: the YAML configuration, where the job can read it
        out: the directory to write
        arguments: after "--", further arguments of mail-torchrec plan, configuration values
            included
        cpu: CPU cores
        memMB: memory, MB
        h: a resource registered with TorchX, in place of cpu and memMB
        image: the container image, for schedulers that run one
        mounts: storage, as type=volume,src=CLAIM (or EFS),dst=/data or type=bind,src=PATH,dst=PATH
        env: environment variables, such as OMP_NUM_THREADS=8
    """
    _check_local(config=config, out=out)
    words = ["--config", config, "--out", out, *arguments]
    machine: Dict[str, Any] = dict(cpu=cpu, memMB=memMB, h=h, image=image, mounts=mounts, env=env)
    return _single_process("plan", *words, **machine)


def plan_ranks(
    folder: str,
    j: str = "1x2",
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,
    h: Optional[str] = None,
    image: str = "mail-torchrec:latest",
    mounts: Optional[List[str]] = None,
    env: Optional[Dict[str, str]] = None,
    rdzv_port: int = 29500,
) -> AppDef:
    """Runs the ranks of mail-torchrec plan --measure or --calibrate, which writes their job.

    Args:
        folder: the folder of the job, on storage that all hosts share
        j: hosts x ranks a host, such as 1x2 or 4x8
        cpu: CPU cores a host
        gpu: GPUs a host; at least the ranks a host where the model trains on GPUs
        memMB: memory a host, MB
        h: a resource registered with TorchX, in place of cpu, gpu and memMB
        image: the container image, for schedulers that run one
        mounts: storage, as type=volume,src=CLAIM (or EFS),dst=/data or type=bind,src=PATH,dst=PATH
        env: environment variables of the ranks, such as OMP_NUM_THREADS=8
        rdzv_port: the port on the first host where several hosts meet
    """
    placement: Dict[str, Any] = dict(
        j=j, cpu=cpu, gpu=gpu, memMB=memMB, h=h, image=image, mounts=mounts, env=env,
        rdzv_port=rdzv_port,
    )  # fmt: skip
    _check_local(folder=folder)
    return _torchrun("plan", "--rank-job", folder, max_retries=0, **placement)


def export(
    run_dir: str,
    out: str,
    *arguments: str,
    cpu: int = 2,
    memMB: int = 16384,
    h: Optional[str] = None,
    image: str = "mail-torchrec:latest",
    mounts: Optional[List[str]] = None,
    env: Optional[Dict[str, str]] = None,
) -> AppDef:
    """Exports a finished run as an ONNX model, in one process without GPUs: mail-torchrec export.

    Args:
        run_dir: the directory of a finished run, of any number of ranks
        out: the directory to write, which must not exist
        arguments: after "--", further arguments of mail-torchrec export
        cpu: CPU cores
        memMB: memory, MB; the largest stored part of a table and some 2 GB
        h: a resource registered with TorchX, in place of cpu and memMB
        image: the container image, for schedulers that run one
        mounts: storage, as type=volume,src=CLAIM (or EFS),dst=/data or type=bind,src=PATH,dst=PATH
        env: environment variables, such as OMP_NUM_THREADS=8
    """
    _check_local(run_dir=run_dir, out=out)
    words = ["--run-dir", run_dir, "--out", out, *arguments]
    machine: Dict[str, Any] = dict(cpu=cpu, memMB=memMB, h=h, image=image, mounts=mounts, env=env)
    return _single_process("export", *words, **machine)


def _check_local(**paths: str) -> None:
    """Refuses URIs here, as the command would after it has waited for its machines."""
    for name, path in paths.items():
        if re.match(r"[A-Za-z][\w+.:-]+:/", path):
            raise ValueError(
                f"--{name} should be a path on the job's machines or on storage mounted there, "
                f"received a URI ({path.partition(':/')[0]}:...); give the path where it is mounted"
            )


def _single_process(
    command: str,
    *arguments: str,
    cpu: int,
    memMB: int,
    h: Optional[str],
    image: str,
    mounts: Optional[List[str]],
    env: Optional[Dict[str, str]],
) -> AppDef:
    """Makes a job of one process."""
    role = Role(
        name=command,
        image=image,
        entrypoint="python",
        args=["-m", "mail_torchrec", command, *arguments],
        env=env or {},
        resource=resource(cpu=cpu, gpu=0, memMB=memMB, h=h),
        mounts=parse_mounts(mounts or []),
    )
    return AppDef(name=f"mail-{command}", roles=[role])


def _torchrun(
    command: str,
    *arguments: str,
    max_restarts: int = 0,
    env: Optional[Dict[str, str]],
    **placement: Any,
) -> AppDef:
    """Makes a job of torchrun on every host; ``placement`` goes to TorchX unchanged."""
    # Read by torchrun; TorchX has no parameter for it.
    restarts = {"PET_MAX_RESTARTS": str(max_restarts)} if max_restarts else {}
    return ddp(
        command,
        *arguments,
        m="mail_torchrec",
        name=f"/mail-{command}",
        env={**restarts, **(env or {})},
        **placement,
    )
