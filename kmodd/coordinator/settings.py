# SPDX-License-Identifier: LGPL-2.1-or-later
"""The coordinator's command line and what Kubernetes hands over in the environment."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from kmodd.errors import InvalidArgs
from kmodd.fast_dataclass import dataclass
from kmodd.fleet.exposition import parse_address
from kmodd.startup.options import UsageError, read_options

LEASE = "kmodd-coordinator"
"""Name of the Lease."""
DEFAULT_NAMESPACE = "kmodd-system"

USAGE = """\
usage: kmodd-coordinator [--kubeconfig FILE] [--namespace NAME] [--metrics ADDRESS:PORT]

kmodd-coordinator gives each node of a cluster the module sets that select it. See docs/fleet.md.

  --kubeconfig FILE       how to reach the API server (default: $KUBECONFIG, or the service account of the pod)
  --namespace NAME        namespace of the lease (default: $POD_NAMESPACE, or kmodd-system)
  --metrics ADDRESS:PORT  serve /metrics and /healthz there
  --version               print the version
  --help                  print this
"""


@dataclass(frozen=True, slots=True)
class Settings:
    """What was given."""

    kubeconfig: Path | None = None
    """None for the service account of the pod."""
    namespace: str = DEFAULT_NAMESPACE
    name: str = ""
    """First part of the identity in the lease; empty for the host's name."""
    metrics: tuple[str, int] | None = None
    help: bool = False
    version: bool = False

    @classmethod
    def parse(cls, arguments: Sequence[str], environment: Mapping[str, str]) -> "Settings":
        """Read it; UsageError."""
        defaults = {
            "--kubeconfig": environment.get("KUBECONFIG", ""),
            "--namespace": environment.get("POD_NAMESPACE", "") or DEFAULT_NAMESPACE,
            "--metrics": "",
        }
        values, flags = read_options(arguments, defaults)
        try:
            metrics = parse_address(values["--metrics"]) if values["--metrics"] else None
        except InvalidArgs as error:
            raise UsageError(error.message) from error
        return cls(
            kubeconfig=Path(values["--kubeconfig"]) if values["--kubeconfig"] else None,
            namespace=values["--namespace"],
            name=environment.get("POD_NAME", ""),
            metrics=metrics,
            **flags,
        )
