"""Selects the methods of each section of the report."""

from collections.abc import Sequence

from mail_torchrec.data.cold_start import ColdStartSettings
from mail_torchrec.reproduce.methods.definitions import METHODS, TABLE_2, TABLE_3
from mail_torchrec.reproduce.methods.item_methods import ITEM_METHODS
from mail_torchrec.reproduce.methods.method import CONFIGURED, CROSSES
from mail_torchrec.utils.logging import get_logger

logger = get_logger(__name__)

_ITEM_METHODS = [method.name for method in ITEM_METHODS]
_USER_METHODS = [name for name, method in METHODS.items() if not method.is_for_items]
SECTION_METHODS = {
    "table2": [*TABLE_2, *(name for name in _USER_METHODS if name not in [*TABLE_2, *TABLE_3])],
    "table3": TABLE_3,
    "figures": [name for name in _USER_METHODS if name.startswith("MAIL-") and name != "MAIL-None"],
    "warmup": [
        name
        for name in _USER_METHODS
        if (METHODS[name].base is None or name.startswith("MAIL-")) and CROSSES not in name
    ],
    "curve": _USER_METHODS,
    "items": _ITEM_METHODS,
    "coldrec": [name for name in _ITEM_METHODS if not METHODS[name].is_oracle],
}
"""Methods that each section of the report can show."""
_DEFAULT_METHODS = {
    "table2": TABLE_2,
    "figures": ["MAIL-BaseDNN"],
    "warmup": ["BaseDNN", "MAIL-BaseDNN", "DMR", "MAIL-DMR"],
    "curve": [
        "BaseDNN",
        "BaseDNN + mean fill",
        "BaseDNN + crosses",
        "BaseDNN + DropoutNet",
        "MAIL-BaseDNN",
        "MAIL-BaseDNN tuned",
        "MAIL-BaseDNN + dropout",
        "BaseDNN + own tower",
        "BaseDNN oracle",
    ],
    # Its training rows have no cold item, so that a tower sees virtual vectors by dropout alone.
    "coldrec": [
        f"{CONFIGURED}{remedy}"
        for remedy in (
            "",
            " + mean fill + dropout",
            " + virtual items + dropout",
            *(f" + {name}" for name in ("CLCRec", "ALDI", "content proxy")),
        )
    ],
}


def section_methods(
    section: str, chosen: Sequence[str], cold_start: ColdStartSettings
) -> list[str]:
    """Selects the methods of a section: those that were chosen, else its default ones.

    Args:
        section: of the report.
        chosen: methods; none: the default ones, without the oracles where nothing is hidden.
        cold_start: settings of the user's configuration.

    Raises:
        ValueError: a chosen method is not one that the section can show.
    """
    if unknown := [method for method in chosen if method not in SECTION_METHODS[section]]:
        raise ValueError(
            f"{section} has no method {unknown}; it has: {', '.join(SECTION_METHODS[section])}"
        )
    wanted = chosen or _DEFAULT_METHODS.get(section, SECTION_METHODS[section])
    if not chosen and (share := _share_of_none(section, cold_start)):
        oracles = [method for method in wanted if METHODS[method].is_oracle]
        wanted = [method for method in wanted if method not in oracles]
        if oracles:
            logger.info(
                "%s: %s=0 hides nothing that oracles could show; left out: %s",
                section,
                share,
                ", ".join(oracles),
            )
    return [method for method in SECTION_METHODS[section] if method in wanted]


def _share_of_none(section: str, cold_start: ColdStartSettings) -> str | None:
    """Returns the key that decides what oracles could show, where it hides nothing in test."""
    shown = cold_start.of_test
    if section == "items":
        hides_items = shown.items is not None and shown.items.share
        return None if hides_items else "data.cold_start.items.test_share"
    return None if shown.hide_share else "data.cold_start.hide_share"
