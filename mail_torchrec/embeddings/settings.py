"""Configuration of the tables: sharding constraints and the fused optimizer."""

from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from mail_torchrec.embeddings.communication.settings import CommunicationSettings
from mail_torchrec.embeddings.rates.hardware_file import SUFFIX
from mail_torchrec.settings import Settings
from mail_torchrec.utils.local_path import check_local

ShardingTypeName = Literal[
    "table_wise", "column_wise", "row_wise", "table_row_wise", "table_column_wise", "grid_shard"
]
ComputeKernelName = Literal["fused", "fused_uvm", "fused_uvm_caching"]
OptimizerName = Literal["sgd", "adagrad", "rowwise_adagrad", "adam", "partial_rowwise_adam"]


def _refuse_ssd(given: Any, *, names_folder: bool = False) -> Any:
    """Refuses tables on an SSD, which TorchRec knows as ``key_value``, and their folder."""
    if (given is not None and names_folder) or (isinstance(given, list) and "key_value" in given):
        raise ValueError(
            "tables on an SSD (key_value) need operators that no published FBGEMM has; use "
            "compute_kernels=[fused, fused_uvm_caching], tables in the host's memory"
        )
    return given


class TableConstraints(Settings):
    """Sharding constraints of one table, after TorchRec's ``ParameterConstraints``."""

    sharding_types: list[ShardingTypeName] | None = Field(default=None, min_length=1)
    """Sharding types allowed for this table; null: those of ``sharding.sharding_types``."""
    compute_kernels: list[ComputeKernelName] | None = Field(default=None, min_length=1)
    """Compute kernels allowed for this table; null: those of ``sharding.compute_kernels``."""

    @field_validator("compute_kernels", mode="before")
    @classmethod
    def _check_published(cls, given: Any) -> Any:
        return _refuse_ssd(given)


class ShardingSettings(Settings):
    """Sharding options that the planner may choose from, and the sizes its estimates assume."""

    enabled: bool = True
    """Shard the tables over the ranks. false keeps whole tables in one process as plain autograd
    modules, which any table optimizer can train."""
    sharding_types: list[ShardingTypeName] = Field(
        default=["table_wise", "column_wise", "row_wise"], min_length=1
    )
    """Sharding types allowed for every table; a single one forces it. table_row_wise,
    table_column_wise and grid_shard are for pooled tables, on hosts of equally many ranks."""
    compute_kernels: list[ComputeKernelName] = Field(default=["fused"], min_length=1)
    """Compute kernels allowed for every table, that is the memory it may lie in: the device's own
    (fused); on CUDA also the host's, read in place (fused_uvm) or through a cache on the GPU
    (fused_uvm_caching)."""
    constraints: dict[str, TableConstraints] = {}
    """Table name to the sharding types and compute kernels that it alone is allowed, such as
    ``sharding.constraints.user.sharding_types=[row_wise]``."""
    cache_load_factor: float = Field(default=0.2, gt=0, lt=1)
    """Share of a fused_uvm_caching table's rows that the cache on the GPU has room for."""
    ssd_directory: None = None
    """Without use: tables on an SSD need operators that no published FBGEMM has."""
    min_partition: int | None = Field(default=None, ge=4)
    """Columns of the narrowest column-wise shard; null: TorchRec's own default, wide enough to keep
    small tables whole."""
    pooling_factors: dict[str, float] = {}
    """List column to its mean length, for the planner's estimates; a column that is not named
    counts with its max_length."""
    hardware: str | None = None
    """Hardware file of ``mail-torchrec plan --calibrate``, by whose rates the planner compares
    plans; null: published bandwidths."""
    communication: CommunicationSettings | None = None
    """Number formats in which ranks exchange vectors and gradients; null: float32."""
    replicas: int | None = Field(default=None, ge=2)
    """Copies of the tables, each sharded over a group of equally many ranks (2D parallelism,
    TorchRec's ``DMPCollection``); behind each step the groups average them. On CUDA alone (not run
    yet). null: one copy, sharded over all ranks."""

    prefetch: bool = False
    """Copy the rows that the next batch looks up from host memory to the GPU's cache beside this
    batch's step, for tables of fused_uvm_caching; on CUDA alone (not run yet)."""

    @model_validator(mode="after")
    def _check_whole_tables(self) -> Self:
        given = {
            "communication": self.communication is not None,
            "replicas": self.replicas is not None,
            "prefetch": self.prefetch,
        }
        for name in given if not self.enabled else ():
            if given[name]:
                raise ValueError(
                    f"sharding.{name} should be left out with sharding.enabled=false, whose tables "
                    "lie whole in one process; leave one of the two out"
                )
        return self

    @field_validator("hardware")
    @classmethod
    def _check_hardware(cls, path: str | None) -> str | None:
        if path is not None:
            check_local(path, "the hardware file")
            if not path.endswith(SUFFIX):
                raise ValueError(
                    f"should be a hardware file of plan --calibrate (*{SUFFIX}), received '{path}'"
                )
        return path

    @field_validator("compute_kernels", "ssd_directory", mode="before")
    @classmethod
    def _check_published(cls, given: Any, info: ValidationInfo) -> Any:
        return _refuse_ssd(given, names_folder=info.field_name == "ssd_directory")

    @property
    def averages_in_bfloat16(self) -> bool:
        """True where the towers' gradients are averaged over ranks in bfloat16."""
        return self.communication is not None and self.communication.dense_gradients == "bf16"

    def sharding_types_of(self, table: str) -> list[ShardingTypeName]:
        """Returns the sharding types that a table is allowed."""
        of_table = self.constraints.get(table, TableConstraints()).sharding_types
        return self.sharding_types if of_table is None else of_table

    def compute_kernels_of(self, table: str) -> list[ComputeKernelName]:
        """Returns the compute kernels that a table is allowed."""
        of_table = self.constraints.get(table, TableConstraints()).compute_kernels
        return self.compute_kernels if of_table is None else of_table


class TableOptimizerSettings(Settings):
    """Optimizer of all tables, fused into FBGEMM's backward pass."""

    name: OptimizerName = "adagrad"
    """sgd, adagrad or rowwise_adagrad; on CUDA also adam and partial_rowwise_adam. Unsharded tables
    on CPU (sharding.enabled=false) take sgd, adagrad or adam."""
    learning_rate: float = Field(default=0.02, gt=0)
    """Learning rate of the tables."""
    eps: float = Field(default=1e-8, gt=0)
    """Term added to the denominator of the adaptive optimizers, for numerical stability."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of the rows that a batch looks up: each update multiplies them by 1 -
    learning rate * this. On CUDA rowwise_adagrad, adam and partial_rowwise_adam have it, and no
    other; unsharded tables have it with adam, for all of their rows."""
    max_gradient: float | None = Field(default=None, gt=0)
    """Greatest absolute value of each element in the gradient of a looked-up vector; greater ones
    are cut off. A vector that rows of a rank share (their user's, a negative's) is clipped as one,
    so that results depend on the ranks. null does not clip; unsharded tables cannot."""
