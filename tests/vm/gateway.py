"""A machine in which the HTTP gateway runs too, and how this host reaches it.

The gateway listens on its unix socket, as it does when it is installed. QEMU forwards a port of this host's
loopback to the machine's network card, where systemd's socket proxy stands in for the reverse proxy of a real site.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.vm import image, snapshot
from tests.vm.machine import Machine
from tests.vm.progress import say
from tests.vm.qemu import Options

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS = Options(network=True)
_SOCKET = "/run/kmodd-gateway/http"
_FRONT = 8764
_TOKEN = "/root/gateway-token"  # noqa: S105 - a file's name
RULE = "/etc/polkit-1/rules.d/50-kmodd-gateway-modules.rules"
# What tokens may load, unload and set in the throwaway machine: everything.
_RULE = """polkit.addRule(function (action, subject) {
    if (subject.user === "kmodd-gateway" && action.id.indexOf("org.kmodd1.") === 0) {
        return polkit.Result.YES;
    }
    return undefined;
});
"""
_PREPARE = f"""
set -eu
make -C {snapshot.SOURCE} install-gateway
systemctl start kmodd.service
(umask 077; kmodctl token create demo --scope admin --expires 1y > {_TOKEN})
systemctl start kmodd-gateway.socket kmodd-gateway.service
systemd-run --quiet --unit kmodd-front --socket-property ListenStream={_FRONT} --socket-property FreeBind=yes \\
    /lib/systemd/systemd-socket-proxyd {_SOCKET}
"""


@dataclass(frozen=True)
class Address:
    """Where the gateway answers on this host, and a token good for everything."""

    url: str
    token: str


def start(*, port: int = 0) -> tuple[Machine, Address]:
    """A fresh machine with kmodd and the gateway running; ``port`` is this host's, 0 for any free one."""
    near = port or _free_port()
    built = image.build()
    tree = snapshot.installed_tree()
    inputs: list[str | bytes | Path] = [tree, _PREPARE, _RULE]
    state = snapshot.prepared_state(built, OPTIONS, "gateway", inputs, lambda machine: _prepare(machine, tree))
    machine = Machine(built, OPTIONS, state=state, forward={near: _FRONT})
    try:
        token = machine.check(["cat", _TOKEN]).strip()
    except BaseException:
        machine.close()
        raise
    return machine, Address(f"http://127.0.0.1:{near}/", token)


def _prepare(machine: Machine, tree: bytes) -> None:
    say("installing kmodd and its gateway in the machine")
    machine.unpack(tree, snapshot.SOURCE)
    machine.write_file(RULE, _RULE)
    machine.run(["sh", "-c", _PREPARE], timeout=600, check=True)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
