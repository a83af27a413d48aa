# SPDX-License-Identifier: LGPL-2.1-or-later
"""Times the HTTP gateway next to a minimal server that runs modprobe and rmmod. Runs in the virtual machine, as root.

`python3 -m tests.bench.gateway_guest [ROUNDS]`. Both take turns on connections that are kept. The gateway does it all: token,
scope, polkit with the shipped rules and an administrator's, plan, policy, worker, journal.
"""

import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.guest import PAUSE, Table, memory
from tests.bench.kept import Kept, request

if TYPE_CHECKING:
    from collections.abc import Callable

MODULE = "dummy"
PORT, OTHER = 8765, 8799
EXAMPLE = Path("/usr/src/kmodd/polkit/examples/50-kmodd-gateway-modules.rules")
LOOPBACK = Path("/etc/systemd/system/kmodd-gateway.socket.d/loopback.conf")
RULE = Path("/etc/polkit-1/rules.d/50-kmodd-gateway-modules.rules")


def run(*command: str) -> str:
    """What it prints; it has to succeed."""
    return subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True).stdout


def prepare() -> str:
    """The gateway is installed, allowed to load the module, and runs; the token."""
    run("make", "-C", "/usr/src/kmodd", "install-gateway")
    RULE.write_text(EXAMPLE.read_text())
    # Both servers that are timed are asked over TCP.
    LOOPBACK.parent.mkdir(exist_ok=True)
    LOOPBACK.write_text(f"[Socket]\nListenStream=127.0.0.1:{PORT}\n")
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", "polkit.service")
    token = run("kmodctl", "token", "create", "bench", "--scope", "admin").strip()
    run("systemctl", "start", "kmodd-gateway.service")
    return token


class Direct:
    """A client on the bus, of some user."""

    def __init__(self, user: str) -> None:
        command = ["runuser", "-u", user, "--", sys.executable, "-m", "tests.bench.direct"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, action: str) -> float:
        """Seconds it took."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{action}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        """End it."""
        self._process.communicate()


def side_by_side(token: str, rounds: int) -> None:
    """One small module in and out, by each in turn."""
    table = Table()
    gateway, processes = Kept(PORT), Kept(OTHER)
    root, user = Direct("root"), Direct("kmodd-gateway")
    contenders: dict[str, Callable[[str], float]] = {
        "gateway": lambda action: gateway.ask(request("POST", f"/module/{action}/{MODULE}", token)),
        "processes": lambda action: processes.ask(request("POST", f"/module/{action}/{MODULE}")),
        "D-Bus, as the gateway's user": user.ask,
        "D-Bus, as root": root.ask,
    }
    for turn in range(rounds + 3):
        for name, ask in contenders.items():
            for action in ("load", "unload"):
                time.sleep(PAUSE)
                seconds = ask(action)
                if turn >= 3:
                    table.add(f"{name}, {action}", seconds)
    for one in (gateway, processes, root, user):
        one.close()
    print(f"POST /module/load and unload on a kept-alive connection, {PAUSE} s of rest before each")
    table.show()
    for kind, of in (("medians", table.median), ("minima", table.minimum)):
        both = {name: of(f"{name}, load") + of(f"{name}, unload") for name in contenders}
        table.ratio(f"processes / gateway, load and unload, {kind}", both["processes"] / both["gateway"], ">= 1.5")
        # Root is never asked about, so the difference between the two users is polkit's.
        polkit = both["D-Bus, as the gateway's user"] - both["D-Bus, as root"]
        table.ratio(f"polkit's part of the gateway's time, {kind}", polkit / both["gateway"], "none")
        table.ratio(f"the daemon's and the kernel's part, {kind}", both["D-Bus, as root"] / both["gateway"], "none")


def main() -> None:
    """Everything, in order."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    token = prepare()
    pid = int(run("systemctl", "show", "-P", "MainPID", "kmodd-gateway"))
    print("The gateway")
    print(f"  {memory(pid):6.1f} MB resident after its start   aim <= 60 MB")
    command = [sys.executable, str(Path(__file__).with_name("process_server.py")), str(OTHER)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        server.stdout.readline()
        try:
            side_by_side(token, rounds)
        finally:
            server.kill()
    print(f"  {memory(pid):6.1f} MB resident after all of this   aim <= 60 MB")


if __name__ == "__main__":
    main()
