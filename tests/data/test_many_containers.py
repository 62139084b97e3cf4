"""The long form of ``test_containers.py``: 1,500 containers."""

from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest

from tests.data.test_containers import check_containers, fuzz


@pytest.mark.slow
@pytest.mark.long
@fuzz(500)
def test_500_containers_give_the_figures_of_the_plain_form(seed: int) -> None:
    with TemporaryDirectory() as folder:
        check_containers(Path(folder), Random(seed))
