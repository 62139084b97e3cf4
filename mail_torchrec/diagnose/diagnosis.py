"""The command ``mail-torchrec diagnose``: remedies for new users and items, before training."""

from mail_torchrec.config import Config
from mail_torchrec.diagnose.cold_rows import count_cold_rows
from mail_torchrec.diagnose.item_rule import read_item_rule
from mail_torchrec.diagnose.new_items import value_for_new_items
from mail_torchrec.diagnose.new_users import value_for_new_users
from mail_torchrec.diagnose.report import Diagnosis
from mail_torchrec.diagnose.sampled_rows import SampledRows, read_sample
from mail_torchrec.diagnose.verdict import judge
from mail_torchrec.utils.logging import get_logger

logger = get_logger(__name__)


def diagnose(config: Config, max_rows: int) -> Diagnosis:
    """Reads the data, fits the trees, and words the verdict.

    Args:
        config: names the files, and what their columns are.
        max_rows: rows of training, and of test, that the trees see.

    Raises:
        ValueError: data that could not be trained on either, or too few clicks.
    """
    rule = read_item_rule(config)
    sample = read_sample(config, max_rows, rule)
    cold = count_cold_rows(config, rule)
    logger.info("new users: fitting trees on %d rows", len(sample.train))
    users = value_for_new_users(sample, config.data.cold_start.of_training.hide_share)
    logger.info("new items: fitting trees")
    items = value_for_new_items(sample)
    return Diagnosis(_head(sample), cold, users, items, judge(users, items, cold))


def _head(sample: SampledRows) -> str:
    train, test = (f"{len(part):,}" for part in (sample.train, sample.test))
    if sample.is_whole:
        return f"All {train} training rows and {test} test rows were read."
    of_train, of_test = (f"{count:,}" for count in sample.num_rows)
    return f"Read: {train} of {of_train} training rows, and {test} of {of_test} test rows."
