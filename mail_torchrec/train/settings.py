"""Settings of the training."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from mail_torchrec.optim.settings import OptimizerSettings
from mail_torchrec.profiling.settings import ProfileSettings
from mail_torchrec.validation.interval import EvaluationInterval
from mail_torchrec.validation.settings import EarlyStoppingSettings

_REPORTS_AN_EPOCH = 50
# A row costs an evaluation a tenth to a quarter of what it costs a training step. With fewer rows
# the best checkpoint is chosen by chance; more need not be read again and again.
_TRAINING_ROWS_EACH, _VALIDATION_ROWS = 40, (2_000, 2**18)


class TrainSettings(OptimizerSettings):
    """Length, batch sizes, optimizers and device of a run."""

    epochs: int = Field(default=1, ge=1)
    """Passes over the training data."""
    batch_size: int = Field(default=1024, ge=2)
    """Maximum number of rows of a rank's training batch; the reader makes all batches of an epoch
    equally long."""
    eval_batch_size: int = Field(default=4096, ge=1)
    """Maximum number of rows of a rank's evaluation batch."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Number format of the towers' matrix products in training. ``tf32`` is for GPUs; ``bfloat16``
    is fast where the hardware has units for it (GPUs from A100 on, CPUs with AMX or AVX512-BF16;
    others emulate it). Weights, tables and losses stay float32; so does evaluation, except with
    ``tf32``."""
    compile: bool = False
    """Compile the towers (torch.compile): some minutes before the first step, fewer passes over
    memory after it."""
    compile_mode: Literal["default", "reduce-overhead"] = "default"
    """Mode of torch.compile; ``reduce-overhead`` replays the towers' kernels as CUDA graphs. It is
    for GPUs, and needs `train.compile` and `data.shape_buckets`: each shape has a graph of its own.
    """
    seed: int = Field(default=1, ge=0)
    """Seed of initial weights, dropout, shuffling and negatives."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of each rank; ``auto`` is CUDA where there is one."""
    save_predictions: bool = False
    """Write probabilities, label, user and cohort (new or old) of every test row to `predictions/`
    (Parquet), with file, row number and the columns of group `passthrough`."""
    timeout: float = Field(default=600, gt=0)
    """Seconds that a rank waits for the others in a collective, those of a checkpoint's write
    included, before the job ends and reports which rank is missing; and that it waits for data
    while nothing works on them, before it ends and reports which reader process or file is
    stuck."""
    log_every: int | None = Field(default=None, ge=1)
    """Steps between two lines of metrics.jsonl, TensorBoard points and checks that the losses are
    finite; null: about 50 lines an epoch, and at most 20 steps."""
    evaluate_every: str = "0.25 epochs"
    """Time between two evaluations of the validation rows (`data.validation`), as `500 steps` or
    `0.25 epochs`; one follows the last step as well."""
    evaluate_rows: Annotated[int, Field(ge=1)] | Literal["all"] | None = None
    """Number of validation rows of such an evaluation, about: the first rows of evenly spaced row
    groups, the same each time; `all`: all of them; null: a fortieth of the training rows, at least
    2,000 and at most 262,144, so that four evaluations an epoch score a tenth of its rows."""
    progressive_rows: Annotated[int, Field(ge=0)] | Literal["all"] = "all"
    """Number of new training rows that the parent of a continued run scores before the training,
    chosen as those of `evaluate_rows`; `all`: all of them; 0: none."""
    early_stopping: EarlyStoppingSettings = EarlyStoppingSettings()
    """Metric of the validation rows that chooses the best checkpoint, and patience."""

    profile: ProfileSettings | None = None
    """Steps of which each rank writes a Chrome trace, and rank 0 a table by named span, to
    `profile/`; null profiles none."""

    @field_validator("evaluate_every")
    @classmethod
    def _check_evaluate_every(cls, text: str) -> str:
        EvaluationInterval.parse(text)
        return text

    @model_validator(mode="after")
    def _check_compile_mode(self) -> Self:
        if self.compile_mode != "default" and not self.compile:
            raise ValueError(
                f"compile_mode is a mode of torch.compile, received '{self.compile_mode}' with "
                "compile=false; set train.compile=true, or leave compile_mode out"
            )
        return self

    def validation_rows(self, training_rows: int) -> int | None:
        """Returns ``evaluate_rows``, or its default for so many training rows; None for all."""
        if self.evaluate_rows == "all":
            return None
        few, many = _VALIDATION_ROWS
        return self.evaluate_rows or min(max(training_rows // _TRAINING_ROWS_EACH, few), many)

    def steps_between_reports(self, steps_per_epoch: int) -> int:
        """Returns ``log_every``, or its default for epochs of so many steps."""
        return self.log_every or min(max(steps_per_epoch // _REPORTS_AN_EPOCH, 1), 20)
