"""``python -m levsketch.cli``: the same as the ``levsketch`` command."""

import sys

from levsketch.cli import main

sys.exit(main())
