"""The long form of ``test_containers.py``: 1,500 changed columns."""

from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest

from tests.data.test_containers import check_damaged_columns, fuzz


@pytest.mark.slow
@pytest.mark.long
@fuzz(500)
def test_500_changed_columns_are_read_or_refused_by_file_and_name(seed: int) -> None:
    with TemporaryDirectory() as folder:
        check_damaged_columns(Path(folder), Random(seed))
