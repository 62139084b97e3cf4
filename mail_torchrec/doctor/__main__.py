"""Runs the checks as ``python -m mail_torchrec.doctor``, where the command cannot start."""

import sys

from mail_torchrec.doctor.checks import main

sys.exit(main())
