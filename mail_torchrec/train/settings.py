"""Settings of the training."""

from typing import Literal

from pydantic import Field

from mail_torchrec.embeddings.settings import TableOptimizerSettings
from mail_torchrec.settings import Settings


class TrainSettings(Settings):
    """Length, batch sizes, optimizers and device of a run."""

    epochs: int = Field(default=1, ge=1)
    """Passes over the training data."""
    batch_size: int = Field(default=1024, ge=2)
    """Maximum number of rows of a rank's training batch; the reader makes all batches of an epoch
    equally long."""
    eval_batch_size: int = Field(default=4096, ge=1)
    """Maximum number of rows of a rank's evaluation batch."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Learning rate of both dense Adam optimizers: the ranking tower's, and (times
    model.zero_shot.learning_rate_scale) the zero-shot tower's."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of Adam's two moments, in the dense optimizers and in the tables' Adams."""
    eps: float = Field(default=1e-8, gt=0)
    """Term that the dense Adam optimizers add to the denominator."""
    tables: TableOptimizerSettings = TableOptimizerSettings()
    """Optimizer of the embedding tables, fused into the backward pass where they are sharded."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Number format of the towers' matrix products in training. ``tf32`` is for GPUs; ``bfloat16``
    is fast where the hardware has units for it (GPUs from A100 on, CPUs with AMX or AVX512-BF16;
    others emulate it). Weights, tables and losses stay float32; so does evaluation, except with
    ``tf32``."""
    compile: bool = False
    """Compile the towers (torch.compile): some minutes before the first step, fewer passes over
    memory after it."""
    seed: int = Field(default=1, ge=0)
    """Seed of initial weights, dropout, shuffling and negatives."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of each rank; ``auto`` is CUDA where there is one."""
    save_predictions: bool = False
    """Write score, label, user and cohort (new or old) of every test row to predictions.npz, in the
    order of the files."""
    timeout: float = Field(default=600, gt=0)
    """Seconds that a rank waits for the others in a collective, those of a checkpoint's write
    included, before the job ends and reports which rank is missing; and that it waits for data
    while nothing works on them, before it ends and reports which reader process or file is
    stuck."""
    log_every: int = Field(default=20, ge=1)
    """Steps between two lines of metrics.jsonl, TensorBoard points and checks that the losses are
    finite."""
