"""Registry of ranking towers by name, and by import path for towers of one's own.

A tower of your own is named ``package.module:ClassName`` in the configuration. README.md of this
folder says what the class has to offer.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ValidationError
from torch import nn

from mail_torchrec.towers.attribute_crosses import (
    AttributeCrosses,
    AttributeCrossesSettings,
    CrossedTower,
    crossed_shapes,
)
from mail_torchrec.towers.base_dnn import BaseDNN
from mail_torchrec.towers.deepfm import DeepFM
from mail_torchrec.towers.din import DIN
from mail_torchrec.towers.dmr import DMR
from mail_torchrec.towers.emblr import EmbLR
from mail_torchrec.towers.inputs import InputShapes
from mail_torchrec.towers.wide_deep import WideDeep

TOWERS: dict[str, type[nn.Module]] = {
    "emblr": EmbLR,
    "base_dnn": BaseDNN,
    "wide_deep": WideDeep,
    "deepfm": DeepFM,
    "din": DIN,
    "dmr": DMR,
}
"""Name -> class of the towers that come with the project."""
_allowed: set[str] = set()


def allow_tower(name: str) -> None:
    """Allows this process to import a tower that a run names, ``package.module:ClassName``."""
    _allowed.add(name)


def check_allowed(name: str, where: Path) -> None:
    """Checks that a tower which a run's configuration names may be imported.

    Args:
        name: of the tower.
        where: the configuration.

    Raises:
        ValueError: it is not one of the project's, and was not allowed.
    """
    if ":" in name and name not in _allowed:
        raise ValueError(
            f"'{where}' names the tower '{name}', and the code of module "
            f"'{name.partition(':')[0]}' would run; add --allow-tower {name} if you know it and "
            "trust it"
        )


def build_tower(
    name: str,
    options: Mapping[str, Any],
    shapes: InputShapes,
    crosses: AttributeCrossesSettings | None = None,
) -> nn.Module:
    """Builds a ranking tower.

    Args:
        name: a key of :data:`TOWERS`, or ``package.module:ClassName``.
        options: its options; one that is left out has its default.
        shapes: of the inputs.
        crosses: products of attributes and items that it reads too; None: none.

    Raises:
        ValueError: the tower is unknown or cannot be imported, an option does not fit, or the tower
            or the products refuse the shapes.
    """
    tower_class, settings = _tower_class(name), tower_settings(name, options)
    if crosses is None:
        return tower_class(settings, shapes)
    products = AttributeCrosses(crosses, shapes)
    return CrossedTower(tower_class(settings, crossed_shapes(shapes, products)), products)


def tower_settings(name: str, options: Mapping[str, Any]) -> Any:
    """Validates a tower's options by its ``Settings``; returns them as they are without one.

    Args:
        name: a key of :data:`TOWERS`, or ``package.module:ClassName``.
        options: its options.

    Raises:
        ValueError: as :func:`build_tower`.
    """
    settings_class: type[BaseModel] | None = getattr(_tower_class(name), "Settings", None)
    if settings_class is None:
        return dict(options)
    try:
        return settings_class.model_validate(dict(options))
    except ValidationError as error:
        known = ", ".join(settings_class.model_fields) or "none"
        raise ValueError(f"tower '{name}': {_readable(error)}; its options are: {known}") from None


def needs_match(name: str, options: Mapping[str, Any]) -> bool:
    """Returns whether a tower asks for :class:`MatchInputs`: a table V' and sampled negatives."""
    return bool(getattr(tower_settings(name, options), "needs_match", False))


def needs_first_order(name: str, options: Mapping[str, Any]) -> bool:
    """Returns whether a tower asks for first-order weights, one more column of the tables."""
    return bool(getattr(tower_settings(name, options), "needs_first_order", False))


def _readable(error: ValidationError) -> str:
    problems = []
    for problem in error.errors():
        option = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            problems.append(f"unknown option '{option}'")
        else:
            problems.append(f"option '{option}': {problem['msg']}, received {problem['input']!r}")
    return "; ".join(problems)


def _tower_class(name: str) -> type[nn.Module]:
    if name in TOWERS:
        return TOWERS[name]
    module_name, colon, class_name = name.partition(":")
    if not colon or not module_name or not class_name:
        raise ValueError(
            f"unknown tower '{name}'; known are {', '.join(TOWERS)}, or name your own as "
            "package.module:ClassName"
        )
    found = getattr(_import(name, module_name), class_name, None)
    if found is None:
        raise ValueError(
            f"tower '{name}': '{module_name}' has no attribute '{class_name}'; correct the name "
            "behind the colon"
        )
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(
            f"tower '{name}': '{class_name}' should be a class derived from torch.nn.Module, "
            f"received {found!r}"
        )
    allow_tower(name)  # its code has run
    return found


def _import(name: str, module_name: str) -> ModuleType:
    try:
        return import_module(module_name)
    except Exception as error:  # Importing runs a user's code, which may raise anything.
        raise ValueError(
            f"tower '{name}': cannot import '{module_name}' ({type(error).__name__}: {error}); "
            "install it or add its folder to PYTHONPATH"
        ) from error
