"""Server of exported models by the Open Inference Protocol v2, REST and gRPC; imports no torch."""
