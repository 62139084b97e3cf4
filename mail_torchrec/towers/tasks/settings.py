"""Settings of further tasks and of the experts that tasks share, and the rules they must obey."""

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from mail_torchrec.settings import Settings

CLICK = "click"
"""Name of the click among the tasks: the ranking tower's own."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_TAKEN = frozenset(
    "ctr cvr ctcvr rt a v d meta user label conversion is_new logit filename "
    "file_row_number".split()
)
"""Names that outputs, losses and columns of predictions have already."""


class TaskSettings(Settings):
    """One task: a label, what is learnt of it, and its weight in the loss."""

    label: str
    """Column of group `task_label` that holds the label; of the task `click`, the column of group
    `label`. A row whose label is null does not count for the task."""
    type: Literal["binary", "weighted_logistic", "log_normal"] = "binary"
    """What is predicted: `binary` (the probability of a label of 0 or 1), or of a numeric label its
    expected value, by weighted logistic regression (`weighted_logistic`, Covington et al. 2016) or
    by the mean of a log-normal distribution (`log_normal`, of labels above 0 alone)."""
    after: str | None = None
    """Binary task that has to come true first, `click` or another one (ESMM, Ma et al. 2018). Of a
    binary task the probability of both is learnt on all rows, as a product; of a numeric one, the
    expected value where it came true."""
    weight: float = Field(default=1.0, ge=0)
    """Weight of the task's loss in the sum of all."""
    hidden_dims: tuple[PositiveInt, ...] = (64,)
    """Hidden layers of the task's own network. The click has one with `model.experts` alone."""
    scale: float = Field(default=1.0, gt=0)
    """Unit of a numeric label in training, best about its mean: labels are divided by it, and
    predictions multiplied. A network learns fastest what is near 1."""


class MMoESettings(Settings):
    """Multi-gate mixture of experts (Ma et al., KDD 2018)."""

    name: Literal["mmoe"]
    """`mmoe`: experts that all tasks share, mixed by a gate of each task; or `ple`."""
    num_experts: PositiveInt = 4
    """Number of experts."""
    hidden_dims: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (64,)
    """Layers of an expert, with ReLU."""


class PLESettings(Settings):
    """Progressive layered extraction (Tang et al., RecSys 2020)."""

    name: Literal["ple"]
    """`ple`: levels of experts, some of which one task has alone; or `mmoe`."""
    num_levels: PositiveInt = 2
    """Levels of experts; 1 is customised gate control (CGC)."""
    num_shared: PositiveInt = 2
    """Experts of a level that all tasks share."""
    num_own: NonNegativeInt = 1
    """Experts of a level that each task has alone."""
    hidden_dims: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (64,)
    """Layers of an expert, with ReLU."""


ExpertsSettings = Annotated[MMoESettings | PLESettings, Field(discriminator="name")]
"""Settings of the experts, chosen by ``name``."""


def further_tasks(tasks: Mapping[str, TaskSettings]) -> dict[str, TaskSettings]:
    """Returns the tasks beside the click."""
    return {name: task for name, task in tasks.items() if name != CLICK}


def conditional_name(name: str, task: TaskSettings) -> str:
    """Returns the name of a task's prediction where the one before it came true."""
    return f"{name}_given_{task.after}"


def check_tasks(tasks: Mapping[str, TaskSettings], experts: ExpertsSettings | None) -> None:
    """Checks that tasks have names of their own and follow tasks that exist.

    Raises:
        ValueError: a rule is broken; the message names the task and the remedy.
    """
    binary = [CLICK]
    for name, task in tasks.items():
        where = f"tasks.{name}"
        if name == CLICK:
            _check_click(task, experts)
            continue
        if not _NAME.fullmatch(name) or name in _TAKEN or name.startswith("new_"):
            raise ValueError(
                f"{where}: a task's name should be letters, digits and underscores, begin with a "
                f"letter, and be none of {', '.join(sorted(_TAKEN))} or new_...; choose another"
            )
        if task.after is not None and task.after not in binary:
            raise ValueError(
                f"{where}.after should be a binary task above it ({', '.join(binary)}), received "
                f"'{task.after}'; name one of them, or move the task below it"
            )
        if task.type == "binary":
            if task.scale != 1:
                raise ValueError(f"{where}.scale is for numeric labels; drop it")
            binary.append(name)
    if experts is not None and not further_tasks(tasks):
        raise ValueError(
            "experts are for several tasks, and there is the click alone; add one to tasks, or set "
            "experts null"
        )
    _check_distinct(tasks)


def _check_click(task: TaskSettings, experts: ExpertsSettings | None) -> None:
    if task.type != "binary" or task.after is not None or task.scale != 1:
        raise ValueError(
            f"tasks.{CLICK} is binary and comes first; of its settings only label, weight and, "
            "with experts, hidden_dims can be set"
        )
    if experts is None and "hidden_dims" in task.model_fields_set:
        raise ValueError(
            f"tasks.{CLICK}.hidden_dims is for model.experts: without them the click is the "
            "ranking tower's own prediction; drop it"
        )


def _check_distinct(tasks: Mapping[str, TaskSettings]) -> None:
    """Checks that no two predictions have one name."""
    taken = {CLICK, "pctr"}
    for name, task in further_tasks(tasks).items():
        own = {name}
        if task.type == "binary":
            own |= {conditional_name(name, task)} if task.after is not None else set()
            own |= {f"p{each}" for each in own}
        if both := sorted(own & taken):
            raise ValueError(f"tasks.{name}: another task predicts '{both[0]}' too; rename one")
        taken |= own
