"""Names that a repository's writer and the model inside it share."""

from typing import Literal

Backend = Literal["onnxruntime", "python"]
EXPORTED = "exported"
"""Folder of the exported model, inside a version's folder of the Python backend."""
MAX_CANDIDATES = "max_candidates"
"""Parameter of ``config.pbtxt`` with the most candidates of a request."""
