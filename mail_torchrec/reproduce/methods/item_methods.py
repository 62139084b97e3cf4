"""Defines the methods for new items, each the configured model with something for their ids."""

from mail_torchrec.config import Config
from mail_torchrec.data.items.new_items import has_new_items
from mail_torchrec.reproduce.methods.method import CONFIGURED, Method

_VIRTUAL_ITEMS = {
    "mean fill": "{fill: mean}",
    "mean fill + dropout": "{fill: mean, dropout: 0.2}",
    "virtual items": "{}",
    "virtual items + dropout": "{dropout: 0.2}",
    "virtual items + ranking loss": "{ranking_weight: 1.0}",
    "CLCRec": "{mse_weight: 0, contrast: {weight: 0.5}, ranking_weight: 0.5, dropout: 0.5}",
    "ALDI": "{mse_weight: 0, ranking_weight: 1.0, distillation: {}}",
    "content proxy": "{mse_weight: 0, ranking_weight: 1.0, contrast: {steps: 75}}",
}
"""``model.virtual_items`` of each."""
_NOTHING = "model.virtual_items=null"

ITEM_METHODS = [
    Method(CONFIGURED, CONFIGURED, (_NOTHING,)),
    *(
        Method(f"{CONFIGURED} + {name}", CONFIGURED, (f"model.virtual_items={settings}",))
        for name, settings in _VIRTUAL_ITEMS.items()
    ),
    Method(f"{CONFIGURED} oracle", CONFIGURED, (_NOTHING, "data.cold_start.items.oracle=true")),
]
"""The model without any, the remedies, and the oracle, which shows the withheld ids."""


def check_new_items(config: Config) -> None:
    """Checks that there are new items to compare methods on, before anything is trained for it.

    Raises:
        ValueError: nothing says which items are new.
    """
    hidden = config.data.cold_start.items
    if not has_new_items(config.schema_, config.data.new_items, hidden):
        raise ValueError(
            "items compares methods on the rows of new items, and nothing says which items are "
            "new; withhold the ids of some, as in data.new_items={max_count: 0} "
            "data.cold_start.items={train_share: 0.02, test_share: 0.4}"
        )
