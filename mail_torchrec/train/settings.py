"""How a run trains."""

from typing import Literal

from pydantic import Field

from mail_torchrec.embeddings.sharding import TableOptimizerSettings
from mail_torchrec.settings import Settings


class TrainSettings(Settings):
    """Length, sizes and optimizers of a run."""

    epochs: int = Field(default=1, ge=1)
    batch_size: int = Field(default=1024, ge=2)
    """Most rows a batch and rank; the reader makes all batches of an epoch equally long."""
    eval_batch_size: int = Field(default=4096, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    """Of both dense Adams: G_B's for the ranking tower, and G_A for the zero-shot tower (times its
    learning_rate_scale)."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    """Of the dense Adams."""
    tables: TableOptimizerSettings = TableOptimizerSettings()
    """The tables' part of G_B, fused into the backward pass."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Of the towers' matrix products in training: tf32 is for GPUs, bfloat16 pays where the
    hardware has units for it (GPUs from A100 on, CPUs with AMX or AVX512-BF16; others emulate it).
    Weights, tables and losses stay float32; so does evaluation, but for tf32."""
    compile: bool = False
    """Compile the towers (torch.compile): some minutes before the first step, fewer passes over
    memory after it."""
    seed: int = Field(default=1, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is one."""
    save_predictions: bool = False
    """Write the score, label, user and part (new or old) of every test row as predictions.npz."""
    timeout: float = Field(default=600, gt=0)
    """Seconds that a rank waits for the others in a collective, before the job ends and says who is
    missing."""
    log_every: int = Field(default=20, ge=1)
    """Steps between two lines of metrics.jsonl, TensorBoard points and checks of the losses."""
