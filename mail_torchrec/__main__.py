"""``python -m mail_torchrec``, which ``torchrun -m mail_torchrec train ...`` runs on every rank."""

from mail_torchrec.cli import main

main()
