"""Base class of every typed configuration section."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Frozen configuration section with typed fields and defaults; refuses unknown keys.

    Each section is declared beside the code that it configures (the schema in
    ``data/schema/schema.py``, the zero-shot switches in ``towers/zero_shot_settings.py``, ...);
    ``config.py`` combines them.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )
