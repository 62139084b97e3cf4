"""``python -m mail_torchrec``, which ``torchrun -m mail_torchrec train ...`` runs on every rank."""

from mail_torchrec.distributed.parent import kill_with_launcher

kill_with_launcher()  # before the imports below, which take seconds

from mail_torchrec.cli import main  # noqa: E402

main()
