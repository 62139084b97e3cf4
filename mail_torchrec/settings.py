"""The base of every typed configuration section."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A frozen configuration section: unknown keys are refused, wrong types are errors, defaults stand in the class.

    Each section is declared beside what it builds (the schema in ``data/schema/schema.py``, the
    zero-shot switches in ``towers/zero_shot.py``, ...); ``config.py`` puts them together.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )
