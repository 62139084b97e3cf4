"""A finished run -> an inference artefact that needs no TorchRec; and what reads one needs no torch either."""
