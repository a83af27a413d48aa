# SPDX-License-Identifier: LGPL-2.1-or-later
"""A virtual machine with the gateway on a port of this host, and a rule that lets it change some modules."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.gateway.processes import free_port
from tests.vm import snapshot
from tests.vm.machine import Machine
from tests.vm.qemu import Options

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "/usr/src/kmodd"
RULE = "/etc/polkit-1/rules.d/50-kmodd-gateway-modules.rules"
CONFIGURE = """polkit.addRule(function (action, subject) {
    if (subject.user === "kmodd-gateway" &&
        ["org.kmodd1.configure", "org.kmodd1.import-module", "org.kmodd1.activate-module"].indexOf(action.id) >= 0) {
        return polkit.Result.YES;
    }
    return undefined;
});
"""
"""What an administrator adds who lets the dashboard change rules and store as well."""
MODULES = [
    "dummy", "overlay", "kmodd_test_dep_a", "kmodd_test_dep_b", "kmodd_test_dep_c", "kmodd_test_fail", "kmodd_test_good",
    "kmodd_test_info", "kmodd_test_params",
]  # fmt: skip
GUEST_PORT = 8080
# The gateway listens on a unix socket of the machine.
RELAY = (
    f"systemd-run --quiet --unit=relay --socket-property=ListenStream=0.0.0.0:{GUEST_PORT} "
    "/lib/systemd/systemd-socket-proxyd /run/kmodd-gateway/http"
)
# The module's own texts, replaced by markup of the same length: the file stays one that the kernel loads.
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
SPOIL = r"""
import sys
from pathlib import Path
path, harmless, hostile = Path(sys.argv[1]), *(text.encode() for text in sys.argv[2:])
data = path.read_bytes()
assert data.count(harmless) == 1 and len(hostile) <= len(harmless)
path.write_bytes(data.replace(harmless, hostile.ljust(len(harmless))))
"""


@contextmanager
def serving() -> Iterator[tuple[Machine, str]]:
    """The machine, and the gateway's address from here."""
    port = free_port()
    with snapshot.start_with_kmodd(Options(network=True), forward={port: GUEST_PORT}) as vm:
        vm.run(f"make -C {SOURCE} install-gateway", timeout=180, check=True)
        rule = (ROOT / "polkit/examples/50-kmodd-gateway-modules.rules").read_text()
        rule = rule.replace('["loop", "dummy"]', json.dumps(MODULES)).replace("Parameters = false", "Parameters = true")
        vm.write_file(RULE, rule + CONFIGURE)
        vm.run("systemctl restart polkit.service", timeout=60, check=True)
        vm.run("kmodctl token create first --scope read", check=True)
        vm.run(f"systemctl start kmodd-gateway.socket kmodd-gateway.service && {RELAY}", timeout=90, check=True)
        yield vm, f"http://127.0.0.1:{port}"


def spoil(vm: Machine, module: str, harmless: str, hostile: str) -> None:
    """Replace a text of a module's file by one that is no longer."""
    vm.run(["python3", "-c", SPOIL, vm.check(f"modinfo -n {module}").strip(), harmless, hostile], check=True)


def make_token(vm: Machine, name: str, *scopes: str, more: str = "") -> str:
    """A new token."""
    return vm.check(f"kmodctl token create {name} {' '.join(f'--scope {one}' for one in scopes)} {more}").strip()


def is_loaded(vm: Machine, module: str) -> bool:
    """The kernel has it, and its init is over."""
    return vm.run(["cat", f"/sys/module/{module}/initstate"]).stdout.strip() == "live"


def kernels_modules(vm: Machine) -> list[str]:
    """What /proc/modules names, sorted."""
    return sorted(line.split()[0] for line in vm.read_file("/proc/modules").decode().splitlines())
