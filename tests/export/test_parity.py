"""Golden requests as a batch of the trainer's."""

from pathlib import Path

import pytest

from mail_torchrec.data.source import Source
from mail_torchrec.export.parity import golden_batch
from mail_torchrec.inference.golden import sample_requests
from tests.support.small_rows import write_rows
from tests.support.untrained_model import UntrainedModel


@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
def test_golden_requests_are_one_batch_however_many_processes_read_the_training_data(
    tmp_path: Path, num_workers: int
) -> None:
    write_rows(tmp_path / "train" / "a.parquet", 60, seed=1)
    write_rows(tmp_path / "test" / "c.parquet", 20, seed=3)
    data = {"root": str(tmp_path), "num_workers": num_workers}
    model = UntrainedModel(tmp_path, tmp_path, data=data)
    config = model.config
    source = Source(str(model.path), config.schema_)
    requests, types = sample_requests(
        source, config.schema_, model.encoders, config.data.cold_start, 0
    )
    batch = golden_batch(requests, types, config, model.encoders, model.feature_tables, tmp_path)
    assert len(batch) == sum(len(request.candidates) for request in requests)
    assert batch.weights_B.min() == 1
