"""Settings of the section ``metrics``: what an evaluation reports beside the cohorts."""

from typing import Annotated

from pydantic import AfterValidator, Field

from mail_torchrec.settings import Settings


def _unique(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError(f"each column should stand once, received {', '.join(names)}")
    return names


class MetricsSettings(Settings):
    """Metrics of evaluated rows."""

    by: Annotated[tuple[str, ...], AfterValidator(_unique)] = ()
    """Columns by whose values metrics are reported too, such as `[country, hour]`: names of the
    schema, or any other column of the files with one value a row."""
    max_groups: int = Field(default=50, ge=1, le=1000)
    """Maximum number of values of such a column that are reported, those with the most rows; the
    others are one group, `(other)`, and rows without a value are another, `(missing)`."""
    constants: bool = True
    """Compare the metrics at the end of a run with two constants: the click rate of the training
    rows, and that of each item. The training data's label and item are read once more for it."""
