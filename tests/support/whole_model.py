"""A model over whole tables of random weights, whose rows are found by raw values."""

from typing import Any

import numpy.typing as npt
import torch

from mail_torchrec.config import Config
from mail_torchrec.data.encoders import Encoders
from mail_torchrec.data.fitting import fit_encoders
from mail_torchrec.data.reading.batch import Batch
from mail_torchrec.data.reading.partition import RankInfo
from mail_torchrec.data.reading.reader import Reader
from mail_torchrec.data.source import Source
from mail_torchrec.model.mail import Towers
from mail_torchrec.towers.inputs import RankingInputs
from mail_torchrec.train.assembly import assemble

Array = npt.NDArray[Any]


class WholeModel:
    """Untrained model of a configuration, and the first rows of its training files as a batch."""

    def __init__(self, config: Config, num_rows: int = 32) -> None:
        self.train_path = config.data.path(config.data.train)
        source = Source(self.train_path, config.schema_)
        self.encoders: Encoders = fit_encoders(source, config.schema_, config.data.cold_start)
        self.schema = config.schema_.with_dims(self.encoders.num_rows)
        assembled = assemble(config, self.encoders, torch.device("cpu"))
        self.model = assembled.model.eval()
        assert isinstance(self.model.towers, Towers)
        self.towers = self.model.towers
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for value in self.model.parameters():
                value.copy_(0.5 * torch.randn(value.shape, generator=generator))
        reader = Reader(
            source, config.schema_, self.encoders, assembled.feature_tables, config.data,
            rank_info=RankInfo(), batch_size=num_rows, shuffle=False, seed=0,
        )  # fmt: skip
        self.batch: Batch = next(iter(reader))
        self._tables = {
            key.split(".")[2]: value.double().numpy()
            for key, value in self.model.state_dict().items()
            if "_tables." in key
        }

    def row(self, table: str, value: object) -> int:
        """Row of a value of a vocabulary: 1 for null, else 2 and its place."""
        values = self.encoders.tables[table].values
        assert values is not None
        return 1 if value is None else 2 + values.to_pylist().index(value)

    def vector(self, table: str, value: object, stored: str | None = None) -> Array:
        """Vector of a value, cut to the table's dimension; of another table with its rows."""
        vectors: Array = self._tables[stored or table][self.row(table, value)]
        return vectors[: self.schema.table(table).dim]

    def scored(self) -> tuple[list[float], RankingInputs]:
        """Logits of the batch's rows, and what the ranking tower saw."""
        seen: list[RankingInputs] = []
        hook = self.towers.ranking.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        with torch.no_grad():
            logits_B = self.model(self.batch)[1].logits_B
        hook.remove()
        return logits_B.tolist(), seen[0]
