"""Exported models behind the Open Inference Protocol v2, REST and gRPC. Needs no torch."""
