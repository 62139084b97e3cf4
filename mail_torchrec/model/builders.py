"""Settings of the model's dense part, and builders of its optional modules.

Builders raise ``ValueError`` where the schema, or another module, leaves no room for a module.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator
from torch import nn

from mail_torchrec.baselines.meta_emb import MetaEmb, MetaEmbSettings
from mail_torchrec.baselines.registry import GENERATORS, BaselineSettings
from mail_torchrec.data.schema.schema import Group, Kind, Schema
from mail_torchrec.model.virtual_items.settings import VirtualItemSettings
from mail_torchrec.settings import Settings
from mail_torchrec.towers.attribute_crosses import AttributeCrossesSettings
from mail_torchrec.towers.inputs import InputShapes
from mail_torchrec.towers.multi_task import MultiTaskHead, MultiTaskSettings
from mail_torchrec.towers.tasks.heads import TaskHeads
from mail_torchrec.towers.tasks.layout import ESMM_LAYOUT, TaskLayout
from mail_torchrec.towers.tasks.settings import (
    CLICK,
    ExpertsSettings,
    TaskSettings,
    check_tasks,
    further_tasks,
)
from mail_torchrec.towers.zero_shot.settings import ZeroShotSettings
from mail_torchrec.towers.zero_shot.tower import ZeroShotTower


class ModelSettings(Settings):
    """Towers of the model and their training on cold rows."""

    tower: str = "dmr"
    """The ranking tower: emblr, base_dnn, wide_deep, deepfm, din, dmr, or the import path
    ``package.module:Class`` of your own."""
    tower_options: dict[str, Any] = {}
    """Options of the ranking tower, the fields of its ``Settings`` class."""
    attribute_crosses: AttributeCrossesSettings | None = Field(
        default=None, exclude_if=lambda found: found is None
    )
    """Products of user attributes and target items that the ranking tower reads too, whichever it
    is; null: none."""
    zero_shot: ZeroShotSettings | None = ZeroShotSettings()
    """The zero-shot tower; null leaves new users without behaviours, as an ordinary ranker does."""
    virtual_items: VirtualItemSettings | None = Field(
        default=None, exclude_if=lambda found: found is None
    )
    """Generator of the vectors of new items from their other columns; null: new items have the
    vector of their row, mostly that of unknown ids."""
    multi_task: MultiTaskSettings | None = None
    """The head for conversions on the ranking tower; null predicts clicks alone."""
    tasks: dict[str, TaskSettings] = Field(default={}, exclude_if=lambda tasks: not tasks)
    """Further tasks by name, each with a label of its own, and the weight of `click`."""
    experts: ExpertsSettings | None = Field(default=None, exclude_if=lambda found: found is None)
    """Experts between the ranking tower's last hidden layer and the tasks, the click among them:
    mmoe or ple; null: the tasks share that layer alone."""
    baseline: BaselineSettings | None = None
    """A published cold-start baseline in the zero-shot tower's place: mean_fill, llae, meta_emb,
    cvar or mwuf; null without one."""
    behaviour_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of warm users (with behaviours) that each training step treats as cold ones, without
    their real behaviours (DropoutNet, Volkovs et al., NIPS 2017) or with virtual ones."""
    cold_loss_weight: float = Field(default=0.0, ge=0.0)
    """Weight of a second ranking loss in training, of rows scored as if their users were cold; 0
    leaves the second pass out. It counts warm rows, with new_user_tower own all rows."""
    new_user_tower: Literal["shared", "own"] = "shared"
    """Tower that scores cold users: shared (the ranking tower) or own (a second one, trained by the
    second ranking loss on all rows); the tables are shared either way."""
    virtual_flag: bool = Field(default=False, exclude_if=lambda flag: not flag)
    """Tell the ranking tower whose behaviours are virtual, by one more numeric feature; the paper
    does not."""
    mixing_strength: float | None = Field(
        default=None, gt=0.0, exclude_if=lambda strength: strength is None
    )
    """Keep the few real behaviours of cold users and put virtual ones behind them, which follow the
    real ones by count, as if attributes were worth so many behaviours; null replaces them."""
    mmd_over_all_ranks: bool = True
    """Compute the MMD (or the contrastive loss) of L_d over the warm users of all ranks, as one
    process would; false compares each rank's own users alone, for very many ranks."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.baseline is not None and self.zero_shot is not None:
            raise ValueError(
                f"baseline '{self.baseline.name}' stands in the zero-shot tower's place; set "
                "zero_shot null, or baseline null"
            )
        if self.attribute_crosses is not None and self.tower == "emblr":
            raise ValueError(
                "attribute_crosses multiplies vectors, and tower 'emblr' has one weight an id; set "
                "attribute_crosses null, or choose another tower"
            )
        if self.new_user_tower == "own" and not self.cold_loss_weight:
            raise ValueError(
                "new_user_tower 'own' is trained by rows ranked as cold alone; set "
                "cold_loss_weight above 0, to 1 for example"
            )
        has_filler = self.baseline is not None and not isinstance(self.baseline, MetaEmbSettings)
        if self.zero_shot is None and not has_filler:
            for name in ("virtual_flag", "mixing_strength"):
                if getattr(self, name):
                    raise ValueError(
                        f"{name} needs virtual behaviours, and nothing makes any; set zero_shot, "
                        f"or a baseline that fills, mean_fill for example, or leave {name} out"
                    )
        check_tasks(self.tasks, self.experts)
        if self.tasks and self.multi_task is not None:
            raise ValueError(
                "multi_task and tasks are two ways to say it; take the conversion into tasks "
                "({label: COLUMN, after: click}), and set multi_task null"
            )
        if self.experts is not None and isinstance(self.baseline, MetaEmbSettings):
            raise ValueError(
                "baseline meta_emb learns from the ranking tower's own click, which is a part of "
                "it with experts; set experts null, or choose another baseline"
            )
        return self

    @property
    def has_generator(self) -> bool:
        """True where a part of the optimizer group ``zero_shot`` generates vectors."""
        has_baseline = isinstance(self.baseline, GENERATORS)
        return self.zero_shot is not None or self.virtual_items is not None or has_baseline

    @property
    def task_layout(self) -> TaskLayout:
        """Meaning of the predictions beside the click."""
        return ESMM_LAYOUT if self.multi_task is not None else TaskLayout.of(self.tasks)

    @property
    def click_weight(self) -> float:
        """Weight of the click's loss."""
        if self.multi_task is not None:
            return self.multi_task.click_weight
        return self.tasks[CLICK].weight if CLICK in self.tasks else 1.0


def build_multi_task(
    settings: ModelSettings, schema: Schema, tower: nn.Module | None
) -> MultiTaskHead | TaskHeads | None:
    """Builds the head of further tasks on a ranking tower; None without tasks or without a tower.

    Raises:
        ValueError: the schema lacks a label, or the tower gives no representation.
    """
    if tower is None:
        return None
    if further_tasks(settings.tasks):
        return TaskHeads(settings.tasks, settings.experts, tower, settings.tower)
    if settings.multi_task is None:
        return None
    if schema.conversion is None:
        raise ValueError(
            "model.multi_task needs a column of group 'conversion' in schema.columns (0 or 1: "
            "what followed the click), found none; "
            "add it, or model.multi_task=null"
        )
    return MultiTaskHead(settings.multi_task, tower, settings.tower)


def check_task_labels(tasks: Mapping[str, TaskSettings], schema: Schema) -> None:
    """Checks that the labels of tasks are columns of the schema that fit them.

    Raises:
        ValueError: a label is no such column; the message names the task and the columns.
    """
    for name, task in tasks.items():
        where = f"model.tasks.{name}.label"
        if name != CLICK:
            _check_task_label(task, schema, where)
        elif task.label != schema.label:
            raise ValueError(
                f"{where} should be the column of group 'label', '{schema.label}', received "
                f"'{task.label}'"
            )


def _check_task_label(task: TaskSettings, schema: Schema, where: str) -> None:
    if task.label not in (labels := schema.names(Group.TASK_LABEL)):
        known = ", ".join(labels) or "none"
        raise ValueError(
            f"{where} should be a column of group 'task_label' ({known}), received "
            f"'{task.label}'; add schema.columns.{task.label}={{group: task_label}}"
        )
    wanted = Kind.CATEGORICAL if task.type == "binary" else Kind.NUMERIC
    if (kind := schema.columns[task.label].kind) is not wanted:
        raise ValueError(
            f"{where}: a task of type '{task.type}' needs a label of kind '{wanted}', and "
            f"'{task.label}' has kind '{kind}'; change one of them"
        )


def build_meta_emb(
    settings: BaselineSettings | None, schema: Schema, shapes: InputShapes, *, has_first_order: bool
) -> MetaEmb | None:
    """Builds MetaEmb's generator of id vectors; None where the baseline is another one."""
    if not isinstance(settings, MetaEmbSettings):
        return None
    if has_first_order:
        raise ValueError(
            "model.baseline: meta_emb makes the vector of a new user's id, and this tower has a "
            "weight of each id beside it, which nothing "
            "makes; choose a tower without first-order weights, base_dnn for example"
        )
    num_numeric = len(schema.numeric(Group.ATTRIBUTE))
    return MetaEmb(
        settings,
        user_id_field(schema, settings.field),
        shapes.num_attributes,
        shapes.attribute_dim,
        num_numeric,
    )


def build_zero_shot(
    settings: ZeroShotSettings | None, schema: Schema, shapes: InputShapes
) -> ZeroShotTower | None:
    """Builds the zero-shot tower for a schema's fields and sequences; None without settings."""
    if settings is None:
        return None
    groups = _field_groups(settings, shapes)
    return ZeroShotTower(
        settings,
        group_fields={name: num for name, (num, _) in groups.items()},
        field_dim=next(iter(groups.values()))[1] if groups else 0,
        num_numeric=len(schema.numeric(Group.ATTRIBUTE)),
        sequences=shapes.sequences,
    )


def _field_groups(settings: ZeroShotSettings, shapes: InputShapes) -> dict[str, tuple[int, int]]:
    """Group -> fields and their dimension, of the groups that the zero-shot tower reads."""
    groups = {"attributes": (shapes.num_attributes, shapes.attribute_dim)}
    if settings.input_fields == "all_fields":
        groups |= {
            "context": (shapes.num_context, shapes.context_dim),
            "items": (shapes.num_items, shapes.item_dim),
        }
    groups = {name: group for name, group in groups.items() if group[0]}
    if len({dim for _, dim in groups.values()}) != 1:
        raise ValueError(
            "model.zero_shot.input_fields=all_fields needs one dimension in all groups, received "
            f"{groups} (fields, dimension); set schema.dim"
        )
    return groups


def user_id_field(schema: Schema, name: str | None) -> int:
    """Returns the index of the user's id among the attributes.

    Args:
        schema: columns and tables.
        name: its column; None finds the one that reads the group key's column of the files.

    Raises:
        ValueError: the name is no attribute of one id; there is no id, or more than one; or there
            is no other attribute.
    """
    attributes = schema.fields(Group.ATTRIBUTE)
    ids = [field for field in attributes if field in schema.scalars]
    if name is not None and name not in ids:
        raise ValueError(
            f"model.baseline.field should name an attribute column of one id ({', '.join(ids)}), "
            f"received '{name}'"
        )
    found = _only_id(schema, ids) if name is None else name
    others = schema.numeric(Group.ATTRIBUTE) + schema.vectors(Group.ATTRIBUTE)
    if len(attributes) + len(others) < 2:
        raise ValueError(
            f"model.baseline: meta_emb makes the id of the other attributes, and '{found}' is "
            "the only one; add others"
        )
    return attributes.index(found)


def _only_id(schema: Schema, ids: list[str]) -> str:
    """The one attribute that reads the group key's column of the files."""
    key = schema.file_column(schema.group_key)
    found = [field for field in ids if schema.file_column(field) == key]
    if len(found) != 1:
        raise ValueError(
            "model.baseline: meta_emb needs the user's id as an attribute, and "
            f"{found or 'no column'} of that group reads '{key}' as the "
            f"group key does; add schema.columns.{key}={{group: attribute}} ('column: {key}' "
            "under another name), or name it by 'field'"
        )
    return found[0]
