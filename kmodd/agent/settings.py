# SPDX-License-Identifier: LGPL-2.1-or-later
"""The agent's command line and what systemd or Kubernetes hand over in the environment."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from kmodd.fast_dataclass import dataclass
from kmodd.startup.options import UsageError, read_options

DEFAULT_STATE = Path("/var/lib/kmodd-agent")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

USAGE = """\
usage: kmodd-agent [--node NAME] [--kubeconfig FILE] [--state DIRECTORY] [--metrics FILE] [--address ADDRESS]

kmodd-agent loads and unloads the kernel modules that the cluster wants on this node, through kmodd. See kmodd-agent(8).

  --node NAME        name of this node in the cluster (default: $NODE_NAME, or the host name)
  --kubeconfig FILE  how to reach the API server (default: $KUBECONFIG, or the service account of the pod)
  --state DIRECTORY  keep what was loaded, and the last specification, here instead of /var/lib/kmodd-agent
  --metrics FILE     write metrics for Prometheus' node_exporter into this file, which must end in .prom
  --address ADDRESS  D-Bus address instead of the system bus, for tests
  --boot-id FILE     read this instead of /proc/sys/kernel/random/boot_id, for tests
  --version          print the version
  --help             print this
"""

_NODE = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Settings:
    """What was given."""

    node: str = ""
    kubeconfig: Path | None = None
    """None for the service account of the pod."""
    state: Path = DEFAULT_STATE
    metrics: Path | None = None
    """None for no metrics."""
    address: str = ""
    """D-Bus address; empty for the system bus."""
    boot_id: Path = BOOT_ID
    help: bool = False
    version: bool = False

    @classmethod
    def parse(cls, arguments: Sequence[str], environment: Mapping[str, str], host: str) -> "Settings":
        """Read it; UsageError. `host` is the name of the machine."""
        defaults = {
            "--node": environment.get("NODE_NAME", "") or host.lower(),
            "--kubeconfig": environment.get("KUBECONFIG", ""),
            "--state": environment.get("STATE_DIRECTORY", "").split(":")[0],
            "--metrics": "",
            "--address": "",
            "--boot-id": "",
        }
        values, flags = read_options(arguments, defaults)
        if not flags and _NODE.fullmatch(values["--node"]) is None:
            raise UsageError(f"{values['--node']!r} is not the name of a node: use --node")
        if values["--metrics"] and not values["--metrics"].endswith(".prom"):
            raise UsageError(f"{values['--metrics']!r} does not end in .prom, as the textfile collector demands")
        return cls(
            node=values["--node"],
            kubeconfig=Path(values["--kubeconfig"]) if values["--kubeconfig"] else None,
            state=Path(values["--state"] or DEFAULT_STATE),
            metrics=Path(values["--metrics"]) if values["--metrics"] else None,
            address=values["--address"],
            boot_id=Path(values["--boot-id"] or BOOT_ID),
            **flags,
        )
