# SPDX-License-Identifier: LGPL-2.1-or-later
"""`python -m kmodd.cli` runs kmodctl."""

import sys

from kmodd.cli.main import main

sys.exit(main())
