"""``python -m mail_torchrec.doctor``, for an installation in which the command itself cannot start."""

import sys

from mail_torchrec.doctor.checks import main

sys.exit(main())
