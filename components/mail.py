"""TorchX components: how a training or an evaluation is started on a machine, a Slurm cluster or Kubernetes.

    torchx run -s local_cwd components/mail.py:train --config launch/configs/synthetic.yaml --run_dir runs/a -- train.epochs=2
    torchx run -s slurm components/mail.py:train --config my.yaml --run_dir /shared/runs/a --j 4x8 --gpu 8 --cpu 64 --memMB 500000

TorchX starts the ``torchrun`` that it finds on PATH, so activate the environment first. It reads the help from the signatures and the
docstrings below, and knows ``Dict`` and ``Optional`` from typing only.
"""

from typing import Any, Dict, Optional

from torchx.components.dist import ddp
from torchx.specs import AppDef


def train(
    config: str,
    run_dir: str,
    *overrides: str,
    j: str = "1x2",
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,
    h: Optional[str] = None,
    image: str = "mail-torchrec:latest",
    env: Optional[Dict[str, str]] = None,
    rdzv_port: int = 29500,
) -> AppDef:
    """Trains a model and evaluates it: mail-torchrec train on every rank.

    Args:
        config: the YAML configuration, where the ranks can read it
        run_dir: the directory to write, not yet holding a run; on storage that all hosts share
        overrides: after "--", configuration values as section.key=value (train.batch_size=4096)
        j: hosts x ranks a host, such as 1x2 or 4x8
        cpu: CPU cores a host
        gpu: GPUs a host; at least the ranks a host where the model trains on GPUs
        memMB: memory a host, MB
        h: a resource registered with TorchX, in place of cpu, gpu and memMB
        image: the container image, for schedulers that run one
        env: environment variables of the ranks, such as OMP_NUM_THREADS=8
        rdzv_port: the port on the first host where several hosts meet
    """
    placement = dict(j=j, cpu=cpu, gpu=gpu, memMB=memMB, h=h, image=image, env=env, rdzv_port=rdzv_port)
    return _ranks("train", "--config", config, "--run-dir", run_dir, *overrides, **placement)


def evaluate(
    run_dir: str,
    data: str,
    *arguments: str,
    j: str = "1x1",
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,
    h: Optional[str] = None,
    image: str = "mail-torchrec:latest",
    env: Optional[Dict[str, str]] = None,
    rdzv_port: int = 29500,
) -> AppDef:
    """Evaluates a finished run on other data: mail-torchrec evaluate on every rank.

    Args:
        run_dir: the directory of a finished run
        data: the Parquet data to score, in the schema of the run
        arguments: after "--", further arguments of mail-torchrec evaluate
        j: hosts x ranks a host, such as 1x2 or 4x8
        cpu: CPU cores a host
        gpu: GPUs a host; at least the ranks a host where the model runs on GPUs
        memMB: memory a host, MB
        h: a resource registered with TorchX, in place of cpu, gpu and memMB
        image: the container image, for schedulers that run one
        env: environment variables of the ranks, such as OMP_NUM_THREADS=8
        rdzv_port: the port on the first host where several hosts meet
    """
    placement = dict(j=j, cpu=cpu, gpu=gpu, memMB=memMB, h=h, image=image, env=env, rdzv_port=rdzv_port)
    return _ranks("evaluate", "--run-dir", run_dir, "--data", data, *arguments, **placement)


def _ranks(command: str, *arguments: str, **placement: Any) -> AppDef:
    """A command of the package under torchrun on every host; where and how goes to TorchX as it is."""
    return ddp(command, *arguments, m="mail_torchrec", name=f"/mail-{command}", **placement)
