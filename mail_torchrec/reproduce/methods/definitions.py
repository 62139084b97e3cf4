"""Defines every method: the paper's, newer ones, oracles, and switches beyond the paper."""

from mail_torchrec.reproduce.methods.item_methods import ITEM_METHODS
from mail_torchrec.reproduce.methods.method import CROSSES, NO_REMEDY, TOWERS, Method

_MAIL = ("model.zero_shot.variant=full", "model.baseline=null")
_DROPOUT = (*NO_REMEDY, "model.behaviour_dropout=0.5")
_GROUPED_BY_USER = ("data.group_by_user=true",)


def _mail(tower: str) -> Method:
    return Method(f"MAIL-{tower}", tower, _MAIL)


def _baseline(name: str) -> tuple[str, ...]:
    return *NO_REMEDY, f"model.baseline={{name: {name}}}"


def _tuned(tower: str) -> Method:
    return Method(f"MAIL-{tower} tuned", tower, _MAIL, preset="tuned")


def _variant(name: str) -> Method:
    return Method(
        f"MAIL-{name.capitalize()}",
        "BaseDNN",
        (f"model.zero_shot.variant={name}", "model.baseline=null"),
    )


_PAPER = [
    Method("Emblr", "Emblr"),
    Method("LLAE", "Emblr", _baseline("llae")),
    Method("BaseDNN", "BaseDNN"),
    Method("MetaEmb", "BaseDNN", (*_baseline("meta_emb"), *_GROUPED_BY_USER), user_id=True),
    _mail("BaseDNN"),
    Method("DMR", "DMR"),
    _mail("DMR"),
]
_NEW = [
    Method("BaseDNN + DropoutNet", "BaseDNN", _DROPOUT),
    *(Method(f"{tower} + mean fill", tower, _baseline("mean_fill")) for tower in TOWERS),
    # All that MetaEmb has but the generator.
    Method("BaseDNN + user id", "BaseDNN", (*NO_REMEDY, *_GROUPED_BY_USER), user_id=True),
    _tuned("BaseDNN"),
    _tuned("DMR"),
    Method("MAIL-BaseDNN + dropout", "BaseDNN", (*_MAIL, "model.behaviour_dropout=0.5")),
    *(
        method
        for tower in ("DeepFM", "DIN", "Wide&Deep")
        for method in (Method(tower, tower), _mail(tower))
    ),
    *(
        method
        for tower in TOWERS
        if CROSSES in tower
        for method in (Method(tower, tower.removesuffix(CROSSES)), _mail(tower))
    ),
]
_ORACLES = [
    Method(f"{tower} oracle", tower, (*NO_REMEDY, "data.cold_start.oracle=true"))
    for tower in TOWERS
]
_REMEDIES = [
    Method(f"{tower} + {title}", tower, _baseline(name))
    for tower in ("BaseDNN", "DIN")
    for title, name in {"CVAR": "cvar", "MWUF": "mwuf"}.items()
]
_OWN_TOWER = (*NO_REMEDY, "model.cold_loss_weight=1", "model.new_user_tower=own")
_CROSSED = [
    Method("BaseDNN + crosses + DropoutNet", f"BaseDNN{CROSSES}", _DROPOUT),
    _tuned(f"BaseDNN{CROSSES}"),
    # What of the tuned preset is left without virtual behaviours.
    *(
        Method(f"{tower} + own tower", tower, _OWN_TOWER)
        for tower in ("BaseDNN", f"BaseDNN{CROSSES}", "DMR")
    ),
]
_SWITCHES = {
    "mixture": ("zero_shot.reconstruction_target=mixture", "zero_shot.virtual_length=predicted"),
    "ranking loss": ("zero_shot.ranking_weight=1",),
    "flag + dropout": ("virtual_flag=true", "behaviour_dropout=0.5"),
    "contrastive": ("zero_shot.alignment=contrastive",),
}
_SWITCHED = [
    Method(f"MAIL-{tower} + {name}", tower, (*_MAIL, *(f"model.{change}" for change in changes)))
    for tower in ("BaseDNN", "DIN")
    for name, changes in _SWITCHES.items()
]
_ABLATIONS = [_variant("none"), _variant("single"), _variant("dual")]

METHODS = {
    method.name: method
    for group in (_PAPER, _NEW, _ORACLES, _ABLATIONS, _CROSSED, _REMEDIES, _SWITCHED, ITEM_METHODS)
    for method in group
}
"""Every method by name."""
TABLE_2 = [method.name for method in [*_PAPER, *_NEW, *_ORACLES]]
"""The paper's seven methods in its order, newer ones, and the oracles."""
TABLE_3 = ["BaseDNN", "MAIL-None", "MAIL-Single", "MAIL-Dual", "MAIL-BaseDNN", "BaseDNN oracle"]
"""The ablation study; MAIL-BaseDNN is the paper's MAIL-Base."""
