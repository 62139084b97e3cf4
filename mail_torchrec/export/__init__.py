"""Export of a finished run as a model for servers without TorchRec."""
