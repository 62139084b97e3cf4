"""A small shop's rows by day, and the configuration that is drafted for them."""

from pathlib import Path
from typing import NamedTuple

import pytest

from mail_torchrec.data_check.drafted_config import draft_config
from tools.shop import Shop
from tools.shop_log import write_shop


class SmallShop(NamedTuple):
    """Files of the shop, and its drafted configuration."""

    folder: Path
    config: Path


def write_small_shop(folder: Path) -> SmallShop:
    """Writes three days of a log, the last one below ``test``, and drafts a configuration."""
    write_shop(Shop(rows=1800, days=3, users=150, items=60, seed=3), folder)
    parts = folder / "parts"
    for day, part in (("01", "train"), ("02", "train"), ("03", "test")):
        (parts / part).mkdir(parents=True, exist_ok=True)
        (folder / f"rows/day=2024-05-{day}").rename(parts / part / f"day=2024-05-{day}")
    config = folder / "shop.yaml"
    config.write_text(draft_config(str(parts), {}, 10_000))
    return SmallShop(parts, config)


@pytest.fixture(scope="package")
def shop(tmp_path_factory: pytest.TempPathFactory) -> SmallShop:
    """The shop that all checks start from."""
    return write_small_shop(tmp_path_factory.mktemp("shop"))
