"""The exported model with golden behaviours."""

from tests.support.drift_models import with_drift

__all__ = ["with_drift"]
