"""Settings of columns, towers and cold start that are accepted and change nothing, in words."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches

from mail_torchrec.data.cold_start import HiddenBy
from mail_torchrec.data.schema.columns import Column, Group, Kind
from mail_torchrec.data.schema.schema import Schema
from mail_torchrec.data.settings import DataSettings
from mail_torchrec.model.builders import ModelSettings
from mail_torchrec.settings import Settings

_PLAIN = (Group.LABEL, Group.CONVERSION, Group.GROUP_KEY, Group.NEW_USER, Group.NEW_ITEM, Group.DAY)
_LONGEST = Column.model_fields["max_length"].default


def unused_settings(model: ModelSettings, schema: Schema, data: DataSettings) -> list[str]:
    """Returns a sentence for each setting without an effect that looks meant.

    Args:
        model: towers, and the labels that are learnt.
        schema: columns and sequences.
        data: rule for new users, and the simulated cold start.
    """
    return [
        *_unused_labels(model, schema),
        *_unused_by_columns(schema),
        *_parts_taken_for_others(schema),
        *_unused_by_cold_users(model, schema, data),
        *_unused_switches(model),
    ]


def _unused_labels(model: ModelSettings, schema: Schema) -> Iterator[str]:
    used = {task.label for task in model.tasks.values()}
    for name in schema.names(Group.TASK_LABEL):
        if name not in used:
            yield (
                f"schema.columns.{name}: no task learns this label; add model.tasks.NAME: "
                f"{{label: {name}}}, or drop the column"
            )
    if schema.conversion is not None and model.multi_task is None:
        yield (
            f"schema.columns.{schema.conversion}: nothing learns this conversion, which "
            "model.multi_task does; set it, or drop the column"
        )


def _unused_by_columns(schema: Schema) -> Iterator[str]:
    for name, column in schema.columns.items():
        if column.group in _PLAIN:
            kept = {"column": column.column, "kind": column.kind}
            plain = Column(group=column.group).model_copy(update=kept)
            unused = [
                key for key in Column.model_fields if getattr(column, key) != getattr(plain, key)
            ]
        else:
            is_cut = column.kind is Kind.LIST or column.max_length == _LONGEST
            unused = [] if is_cut else ["max_length"]
        if unused:
            yield (
                f"schema.columns.{name}: {', '.join(unused)} changes nothing of a column of group "
                f"'{column.group}' and kind '{column.kind}'; drop it, or correct the kind"
            )


def _parts_taken_for_others(schema: Schema) -> Iterator[str]:
    for name, settings in schema.declared_sequences.items():
        parts = list(settings.parts)
        if "action" not in parts and (near := get_close_matches("action", parts, 1, 0.8)):
            yield (
                f"schema.sequences.{name}.{near[0]}: a part named 'action' is what was done with "
                f"each item, '{near[0]}' is a part as any other; rename it if it is the actions"
            )
        if "item" in parts[1:]:
            yield (
                f"schema.sequences.{name}: the first part is the main one, and that is "
                f"'{parts[0]}', not 'item'; were the keys sorted? Write item first if it is meant"
            )


def _unused_by_cold_users(
    model: ModelSettings, schema: Schema, data: DataSettings
) -> Iterator[str]:
    hides_by_day = data.cold_start.by is HiddenBy.USER_DAY
    if hides_by_day and not data.cold_start.hides_users:
        yield (
            "data.cold_start.by: no user is hidden, by days or otherwise; set "
            "data.cold_start.hide_share, or drop it"
        )
    if schema.day is not None and not hides_by_day:
        yield (
            f"schema.columns.{schema.day}: nothing reads the day of a row, which "
            "data.cold_start.by=user_day does; set it, or drop the column"
        )
    if model.mixing_strength and schema.new_user is None and not data.new_user_max_behaviours:
        yield (
            "model.mixing_strength: no cold user has a behaviour to mix with virtual ones; set "
            "data.new_user_max_behaviours above 0, or drop it"
        )


def _unused_switches(model: ModelSettings) -> Iterator[str]:
    zero_shot, items, crosses = model.zero_shot, model.virtual_items, model.attribute_crosses
    if zero_shot is not None:
        needed = {
            "sigma": (zero_shot.aligns_by("mmd"), "alignment mmd"),
            "temperature": (zero_shot.aligns_by("contrastive"), "alignment contrastive"),
            "alignment_weight": (zero_shot.variant == "full", "variant full"),
            "num_prototypes": (zero_shot.is_mixture, "reconstruction_target mixture"),
        }
        yield from _unused_without("model.zero_shot", zero_shot, needed)
    if items is not None:
        needed = {"hidden_dims": (items.fill == "generated", "fill generated")}
        yield from _unused_without("model.virtual_items", items, needed)
    if crosses is not None:
        needed = {"rank": (crosses.form == "bilinear", "form bilinear")}
        yield from _unused_without("model.attribute_crosses", crosses, needed)


def _unused_without(
    where: str, section: Settings, needed: Mapping[str, tuple[bool, str]]
) -> Iterator[str]:
    """Words the keys that are not the default, of those whose need is not met."""
    for key, (is_met, what) in needed.items():
        if not is_met and getattr(section, key) != type(section).model_fields[key].default:
            yield f"{where}.{key}: changes nothing without {what}; drop it, or set that"
