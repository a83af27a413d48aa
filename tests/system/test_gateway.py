# SPDX-License-Identifier: LGPL-2.1-or-later
"""The installed gateway: started by its socket, bounded by polkit, and worth no more than that to whoever takes it over."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.service import CALL, show, wait_until
from tests.vm.machine import Machine

ROOT = Path(__file__).resolve().parents[2]
RULE = "/etc/polkit-1/rules.d/50-kmodd-gateway-modules.rules"
SOURCE = "/usr/src/kmodd"
USER = "runuser -u kmodd-gateway --"
ASK = r"""
import http.client, json, sys
method, path, token, body = sys.argv[1:]
connection = http.client.HTTPConnection("127.0.0.1", 8765, timeout=60)
headers = {"Authorization": f"Bearer {token}"} if token else {}
if body:
    headers["Content-Type"] = "application/json"
connection.request(method, path, body=body or None, headers=headers)
answer = connection.getresponse()
print(answer.status)
print(answer.read().decode())
"""
SYSTEMD = "busctl call org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager"
# Everything that changes something, for a module that is there, and what it needs beyond the system bus's policy.
CHANGES = [
    "Load 'sa{ss}a{sv}' dummy 0 0",
    "Load 'sa{ss}a{sv}' dummy 0 1 override-policy b true",
    "Load 'sa{ss}a{sv}' dummy 0 1 on-behalf-of s root",
    "Load 'sa{ss}a{sv}' kmodd_test_good 0 1 on-behalf-of s 'token admin'",
    "Reload 'sa{ss}a{sv}' dummy 0 0",
    "Batch 'a(ssa{ss})a{sv}' 1 load dummy 0 0",
    "Batch 'a(ssa{ss})a{sv}' 2 load dummy 0 load kmodd_test_good 0 1 atomic b false",
    "ResetFailed s dummy",
]


def ask(vm: Machine, method: str, path: str, token: str = "", body: Any = None) -> tuple[int, Any]:
    """One request from inside: status and document."""
    text = "" if body is None else json.dumps(body)
    lines = vm.run(["python3", "-c", ASK, method, path, token, text], timeout=90, check=True).stdout
    status, _, document = lines.partition("\n")
    return int(status), json.loads(document)


def restart_polkit(vm: Machine) -> None:
    vm.run("systemctl reset-failed polkit.service; systemctl restart polkit.service", timeout=60, check=True)


def loaded(vm: Machine, module: str) -> bool:
    return vm.run(["test", "-e", f"/sys/module/{module}/initstate"]).code == 0


@pytest.fixture(scope="module")
def gateway(vm: Machine) -> Machine:
    """The gateway is installed; nothing is started."""
    vm.run(f"make -C {SOURCE} install-gateway", timeout=180, check=True)
    return vm


@pytest.fixture(scope="module")
def token(gateway: Machine) -> str:
    """A token good for everything; the socket listens."""
    made = gateway.check("kmodctl token create probe --scope admin").strip()
    gateway.run("systemctl start kmodd-gateway.socket", check=True)
    return made


@pytest.fixture
def dummy_rule(gateway: Machine) -> Iterator[None]:
    """The example rule for `dummy` alone."""
    text = (ROOT / "polkit/examples/50-kmodd-gateway-modules.rules").read_text()
    gateway.write_file(RULE, text.replace('["loop", "dummy"]', '["dummy"]'))
    restart_polkit(gateway)
    yield
    gateway.run(["rm", RULE], check=True)
    gateway.run(["modprobe", "-r", "dummy"])
    restart_polkit(gateway)


def test_without_a_token_it_does_not_start_and_says_why(gateway: Machine) -> None:
    assert gateway.run("systemctl start kmodd-gateway.service", timeout=90).code != 0
    assert show(gateway, "ExecMainStatus", "kmodd-gateway.service") == "78"
    assert "make a token with kmodctl token create" in gateway.journal("-u", "kmodd-gateway")
    gateway.run("systemctl stop kmodd-gateway.socket; systemctl reset-failed kmodd-gateway.service")


def test_the_tokens_file_is_roots_and_the_gateway_can_read_it(gateway: Machine, token: str) -> None:
    assert gateway.check("stat -c '%U %G %a' /etc/kmodd/tokens").split() == ["root", "kmodd-gateway", "640"]
    assert gateway.run("kmodctl token create x --scope admin", user="alice").code == 4
    assert gateway.run(f"{USER} sh -c 'echo x >> /etc/kmodd/tokens'").code != 0
    assert token.split("_", 2)[2] not in gateway.read_file("/etc/kmodd/tokens").decode()


def test_the_first_request_starts_it(gateway: Machine, token: str) -> None:
    gateway.run("systemctl stop kmodd-gateway.service")
    status, document = ask(gateway, "GET", "/health")
    assert (status, document) == (200, {"status": document["status"]})
    assert show(gateway, "ActiveState", "kmodd-gateway.service") == "active"
    assert show(gateway, "User", "kmodd-gateway.service") == "kmodd-gateway"
    status, document = ask(gateway, "GET", "/v1/modules", token)
    assert status == 200
    assert "virtio_blk" in {row["name"] for row in document["modules"]}
    pid = show(gateway, "MainPID", "kmodd-gateway.service")
    assert int(gateway.check(f"awk '/^VmRSS/ {{ print $2 }}' /proc/{pid}/status")) < 60_000


def test_as_shipped_it_only_reads(gateway: Machine, token: str) -> None:
    assert ask(gateway, "GET", "/v1/history?limit=5", token)[0] == 200
    status, document = ask(gateway, "POST", "/module/load/dummy", token)
    assert (status, document["type"]) == (403, "urn:kmodd:error:AccessDenied")
    assert not loaded(gateway, "dummy")


@pytest.mark.usefixtures("dummy_rule")
def test_with_the_rule_it_loads_what_is_listed_and_says_for_whom(gateway: Machine, token: str) -> None:
    status, document = ask(gateway, "POST", "/module/load/dummy", token, {"reason": "a test"})
    assert (status, document["message"]) == (200, "Module dummy loaded successfully")
    assert loaded(gateway, "dummy")
    assert ask(gateway, "POST", "/module/load/kmodd_test_good", token)[0] == 403
    assert ask(gateway, "POST", "/v1/modules/dummy/reload", token, {"parameters": {"numdummies": "2"}})[0] == 403
    status, document = ask(gateway, "POST", "/module/unload/dummy", token)
    assert (status, document["message"]) == (200, "Module dummy unloaded successfully")

    def told() -> bool:
        return "a test" in gateway.journal("KMODD_EVENT=module.loaded", "-o", "json")

    wait_until(told, "the record of the load")
    (line,) = [
        row for row in gateway.journal("KMODD_EVENT=module.loaded", "-o", "json").splitlines() if '"a test"' in row
    ]
    record = json.loads(line)
    assert record["KMODD_ON_BEHALF_OF"].startswith("token probe (")
    assert record["KMODD_UID"] == gateway.check("id -u kmodd-gateway").strip()
    assert token.split("_", 2)[2] not in gateway.journal()


@pytest.mark.parametrize("change", CHANGES)
def test_its_user_gets_no_further_than_the_rule_as_shipped(gateway: Machine, change: str) -> None:
    """The confused deputy: whoever took the gateway over calls the daemon directly."""
    before = gateway.read_file("/proc/modules")
    answer = gateway.run(f"{USER} {CALL} {change}", timeout=60)
    assert answer.code != 0
    assert "denied" in answer.stderr.lower() or "not authorized" in answer.stderr.lower(), answer.stderr
    assert gateway.read_file("/proc/modules") == before


@pytest.mark.usefixtures("dummy_rule")
@pytest.mark.parametrize("change", [one for one in CHANGES if "kmodd_test_good" in one or "override" in one])
def test_its_user_gets_no_further_than_the_list(gateway: Machine, change: str) -> None:
    before = gateway.read_file("/proc/modules")
    assert gateway.run(f"{USER} {CALL} {change}", timeout=60).code != 0
    assert gateway.read_file("/proc/modules") == before


@pytest.mark.usefixtures("dummy_rule")
def test_nobody_else_gains_by_the_rule(gateway: Machine) -> None:
    """Saying to be the gateway's token is saying nothing."""
    answer = gateway.run(
        f"{CALL} Load 'sa{{ss}}a{{sv}}' dummy 0 1 on-behalf-of s 'token probe'", user="alice", timeout=60
    )
    assert answer.code != 0
    assert not loaded(gateway, "dummy")


def test_its_user_may_do_nothing_else_on_the_machine(gateway: Machine) -> None:
    for command in (
        f"{SYSTEMD} RestartUnit ss kmodd.service replace",
        f"{SYSTEMD} Reboot",
        "modprobe dummy",
        "cat /etc/shadow",
    ):
        assert gateway.run(f"{USER} {command}", timeout=60).code != 0, command
    assert not loaded(gateway, "dummy")


def test_the_daemon_restarted_is_found_again(gateway: Machine, token: str) -> None:
    gateway.run("systemctl restart kmodd.service", timeout=90, check=True)
    wait_until(lambda: ask(gateway, "GET", "/v1/modules", token)[0] == 200, "the gateway finds the daemon again")
    noise = gateway.journal("-u", "kmodd-gateway")
    assert "Traceback" not in noise
    assert "a bug" not in noise


def test_revoked_at_once(gateway: Machine, token: str) -> None:
    other = gateway.check("kmodctl token create short --scope read").strip()
    assert ask(gateway, "GET", "/v1/modules", other)[0] == 200
    gateway.run("kmodctl token revoke short", check=True)
    assert ask(gateway, "GET", "/v1/modules", other)[0] == 401
    assert ask(gateway, "GET", "/v1/modules", token)[0] == 200
