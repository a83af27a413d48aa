# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs inside the virtual machine: kmodctl's own entry, called for each line of JSON with its arguments.

Answers each with a line {code, out, err}. Under emulation, starting Python again for each would take most of the time.
"""

import io
import json
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

sys.path.insert(0, sys.argv[1])
sys.modules["gi"] = None  # type: ignore[assignment]  # as kmodctl itself does

from kmodd.cli.main import main  # noqa: E402 - after the path


class Stream(io.TextIOWrapper):
    """What a pipe is to kmodctl."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)

    def text(self) -> str:
        """All that was written."""
        data: Any = self.buffer
        return str(data.getvalue().decode())


for line in sys.stdin:
    out, err = Stream(), Stream()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = int(main(json.loads(line), os.environ))
        except SystemExit as leaving:
            code = int(leaving.code or 0)
    sys.stdout.write(json.dumps({"code": code, "out": out.text(), "err": err.text()}) + "\n")
    sys.stdout.flush()
