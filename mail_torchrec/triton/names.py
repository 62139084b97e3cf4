"""What the repository's writer and the model in it call things."""

from typing import Literal

Backend = Literal["onnxruntime", "python"]
EXPORTED = "exported"
"""The folder of the exported model, in a version's folder of the Python backend."""
MAX_CANDIDATES = "max_candidates"
"""The parameter of that name."""
