"""Configurations that the direct reference can be measured on, and why not others."""

from mail_torchrec.config import Config
from mail_torchrec.data.schema.columns import Actions
from mail_torchrec.towers.dmr import DMRSettings
from mail_torchrec.towers.registry import tower_settings


def check_measurable(config: Config) -> None:
    """Checks that the bench can measure a configuration beside its reference.

    Raises:
        ValueError: it cannot; one line says why.
    """
    sequence_and_action(config)


def sequence_and_action(config: Config) -> tuple[str, str]:
    """Returns the one behaviour column and its action column.

    Raises:
        ValueError: another schema or model than that of the reference; one line lists what differs.
    """
    schema, model, reasons = config.schema_, config.model, []
    sequences = schema.sequences
    action = schema.action_of(sequences[0])
    if len(sequences) > 1:
        reasons.append(f"{len(sequences)} behaviour sequences ({', '.join(sequences)})")
    if action is None:
        reasons.append(f"no actions on '{sequences[0]}' (schema.columns.NAME.action_of)")
    if schema.actions is not Actions.PRODUCT:
        reasons.append(f"schema.actions={schema.actions}")
    if others := [name for name in schema.table_names if schema.table(name).dim != schema.dim]:
        reasons.append(f"tables of another dimension than schema.dim: {', '.join(others)}")
    if model.tower != "dmr":
        reasons.append(f"model.tower={model.tower}")
    else:
        settings = tower_settings(model.tower, model.tower_options)
        if isinstance(settings, DMRSettings) and not settings.needs_match:
            reasons.append("DMR without its match loss")
    if model.zero_shot is not None and model.zero_shot.variant != "full":
        reasons.append(f"model.zero_shot.variant={model.zero_shot.variant}")
    reasons += [f"model.{name}" for name in ("multi_task", "baseline") if getattr(model, name)]
    if reasons or action is None:
        raise ValueError(
            "the bench measures DMR with its match loss on one behaviour sequence with actions, "
            f"beside a reference that knows no more; this configuration has {'; '.join(reasons)}; "
            "override these, or measure generated rows (without --config)"
        )
    return sequences[0], action
