# SPDX-License-Identifier: LGPL-2.1-or-later
"""A message bus of a test's own."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CONFIGURATION = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:dir={folder}</listen>
  <auth>EXTERNAL</auth>
  <servicedir>{folder}/services</servicedir>
  <policy context="default">
    <allow send_destination="*" eavesdrop="false"/>
    <allow receive_sender="*"/>
    <allow own="*"/>
    <allow user="*"/>
  </policy>
  <limit name="max_replies_per_connection">50000</limit>
</busconfig>
"""


@contextmanager
def private_bus(folder: Path, *, log: int | None = None) -> Iterator[str]:
    """Run dbus-daemon and give its address; activation files go to `folder/services`, and what it complains about to `log`."""
    (folder / "services").mkdir(exist_ok=True)
    configuration = folder / "bus.conf"
    configuration.write_text(CONFIGURATION.format(folder=folder))
    command = ["dbus-daemon", f"--config-file={configuration}", "--nofork", "--print-address=1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process:
        try:
            assert process.stdout is not None
            # The guid that follows the comma is of no use to a client.
            yield process.stdout.readline().strip().split(",")[0]
        finally:
            process.terminate()
