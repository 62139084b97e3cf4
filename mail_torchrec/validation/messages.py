"""Messages about the validation of a run: its best step, and steps that made it worse."""

from mail_torchrec.validation.progress import ValidationProgress
from mail_torchrec.validation.settings import EarlyStoppingSettings


def best_step_message(settings: EarlyStoppingSettings, progress: ValidationProgress) -> str | None:
    """Words which checkpoint is the model; None where no evaluation had a value."""
    if progress.best is None:
        return None
    return (
        f"the best checkpoint is that of step {progress.best_step}: validation has "
        f"{settings.metric} {progress.best:.5g} of {settings.cohort} rows there"
    )


def overfitting_warning(
    settings: EarlyStoppingSettings, progress: ValidationProgress, steps_per_epoch: int
) -> str | None:
    """Words the warning that more steps made the validation worse; None where they did not.

    Args:
        settings: of the run.
        progress: at its end.
        steps_per_epoch: steps of an epoch.
    """
    best_step, last_step = progress.best_step, progress.last_step
    if best_step is None or last_step is None:
        return None
    if progress.worsening(settings) <= settings.min_delta:
        return None
    epochs = -(-best_step // steps_per_epoch)
    is_shorter = last_step > epochs * steps_per_epoch
    remedies = [f"set train.epochs={epochs}"] if is_shorter else []
    if settings.patience is None:
        remedies.append("stop in time with train.early_stopping.patience=3")
    remedies.append("lower the learning rates (train.learning_rate, train.tables.learning_rate)")
    return (
        f"more steps made the model worse: validation has {settings.metric} {progress.best:.5g} "
        f"of {settings.cohort} rows after step {best_step}, and {progress.last:.5g} "
        f"after step {last_step}, whatever the training loss says. The checkpoint of "
        f"step {best_step} is tested, evaluated and exported. To train no longer than "
        f"helps, {' or '.join(remedies)}"
    )
