# SPDX-License-Identifier: LGPL-2.1-or-later
"""The installed gateway: started by its socket, bounded by polkit, and worth no more than that to whoever takes it over."""

import json
import subprocess
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
SOCKET = "/run/kmodd-gateway/http"
ASK = r"""
import http.client, json, socket, sys
method, path, token, body = sys.argv[1:]
connection = http.client.HTTPConnection("localhost", timeout=60)
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.settimeout(60)
connection.sock.connect("/run/kmodd-gateway/http")
headers = {"Authorization": f"Bearer {token}"} if token else {}
if body:
    headers["Content-Type"] = "application/json"
connection.request(method, path, body=body or None, headers=headers)
answer = connection.getresponse()
print(answer.status)
print(answer.read().decode())
"""
BUS = "org.kmodd1"
UPLOAD = r"""
import http.client, socket, sys
connection = http.client.HTTPConnection("localhost", timeout=100)
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.settimeout(100)
connection.sock.connect("/run/kmodd-gateway/http")
headers = {"Authorization": f"Bearer {sys.argv[1]}", "Content-Type": "application/octet-stream"}
chunks = iter(lambda: sys.stdin.buffer.read(4096), b"")
connection.request("POST", "/v1/store?version=7.1&shadow=true", body=chunks, headers=headers, encode_chunked=True)
print(connection.getresponse().read().decode())
"""
# Over TLS on a TCP port, or on the path of a unix socket: what it answers to a GET.
TLS = r"""
import http.client, socket, ssl, sys
where, path, token = sys.argv[1:]
context = ssl.create_default_context(cafile="/etc/kmodd/tls/chain.pem")
raw = socket.socket(socket.AF_UNIX if where.startswith("/") else socket.AF_INET)
raw.settimeout(60)
raw.connect(where if where.startswith("/") else ("127.0.0.1", int(where)))
connection = http.client.HTTPConnection("node7.example.org")
connection.sock = context.wrap_socket(raw, server_hostname="node7.example.org")
connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
print(connection.getresponse().read().decode())
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
OTHER_CHANGES = [
    f"{BUS}.Configuration SetAutoload 'sba{{ss}}a{{sv}}' dummy true 0 0",
    f"{BUS}.Configuration SetOptions 'sa{{ss}}a{{sv}}' loop 1 max_loop 9 1 on-behalf-of s 'token admin'",
    f"{BUS}.Configuration SetBlacklisted 'sba{{sv}}' dummy true 1 hard b true",
    f"{BUS}.Configuration Apply 'a{{sv}}' 0",
    f"{BUS}.Configuration Reload",
    f"{BUS}.Surface Apply 'a{{sv}}' 0",
    f"{BUS}.Surface Respond 'sa{{sv}}' '' 1 modules as 1 dummy",
    f"{BUS}.Notifier AddWebhook 'ssa{{sv}}' evil https://evil.example/ 0",
    f"{BUS}.Notifier Reload",
]
"""What follows the name of the service and the path, for the other interfaces."""


def ask(
    vm: Machine, method: str, path: str, token: str = "", body: Any = None, *, user: str = "root"
) -> tuple[int, Any]:
    """One request from inside: status and document."""
    text = "" if body is None else json.dumps(body)
    lines = vm.run(["python3", "-c", ASK, method, path, token, text], timeout=90, check=True, user=user).stdout
    status, _, document = lines.partition("\n")
    return int(status), json.loads(document)


def upload(vm: Machine, token: str, source: str) -> Any:
    """What a command prints, as a file for the store, in pieces of 4 KiB whose sum is not told before."""
    vm.write_file("/root/upload.py", UPLOAD)
    return json.loads(vm.check(f"{source} | python3 /root/upload.py {token}", timeout=120))


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
    assert "create a token with kmodctl token create" in gateway.journal("-u", "kmodd-gateway")
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


def test_the_socket_is_for_root_and_a_group_that_reads_no_token(gateway: Machine, token: str) -> None:
    assert gateway.check(f"stat -c '%U %G %a' {SOCKET}").split() == ["root", "kmodd-http", "660"]
    assert "8765" not in gateway.check("ss -Hltn")
    refused = gateway.run(["python3", "-c", ASK, "GET", "/health", token, ""], user="alice")
    assert "PermissionError" in refused.stderr
    gateway.run("gpasswd --add alice kmodd-http", check=True)
    try:
        assert ask(gateway, "GET", "/health", user="alice")[0] == 200
        assert gateway.run("cat /etc/kmodd/tokens", user="alice").code != 0
    finally:
        gateway.run("gpasswd --delete alice kmodd-http", check=True)


def test_the_journal_and_the_token_know_the_user_at_the_other_end(gateway: Machine, token: str) -> None:
    """The unit's sandbox must not turn every uid into nobody's."""
    uid = gateway.check("id -u alice").strip()
    gateway.run("gpasswd --add alice kmodd-http", check=True)
    bound = gateway.check("kmodctl token create alices --scope admin --user alice").strip()
    try:
        assert ask(gateway, "GET", "/v1/modules", bound, user="alice")[0] == 200
        assert ask(gateway, "GET", "/v1/modules", bound)[0] == 401
        assert ask(gateway, "POST", "/module/load/dummy", token, user="alice")[0] == 403
        assert ask(gateway, "POST", "/module/load/dummy", token)[0] == 403

        def told() -> bool:
            records = gateway.journal("KMODD_EVENT=gateway.operation", "-o", "json")
            return f"), uid {uid}" in records and "), uid 0" in records

        wait_until(told, "the records with both users")
    finally:
        gateway.run("kmodctl token revoke alices; gpasswd --delete alice kmodd-http", check=True)


def test_loopback_is_by_choice(gateway: Machine, token: str) -> None:
    folder = "/etc/systemd/system/kmodd-gateway.socket.d"
    restart = "systemctl stop kmodd-gateway.service; systemctl daemon-reload; systemctl restart kmodd-gateway.socket"
    gateway.run(f"mkdir -p {folder} && cp /usr/local/share/doc/kmodd/kmodd-gateway-loopback.conf {folder}", check=True)
    try:
        gateway.run(restart, timeout=90, check=True)
        curl = "import urllib.request as r; q = r.Request('http://127.0.0.1:765/v1/modules'); "
        curl += f"q.add_header('Authorization', 'Bearer {token}'); print(r.urlopen(q, timeout=60).status)"
        assert gateway.check(["python3", "-c", curl]).strip() == "200"
        assert ask(gateway, "GET", "/v1/modules", token)[0] == 200
    finally:
        gateway.run(["rm", "-r", folder])
        gateway.run(restart, timeout=90, check=True)


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


@pytest.mark.usefixtures("dummy_rule")
def test_with_the_switch_it_responds_for_what_is_listed_and_ends_nothing(gateway: Machine, token: str) -> None:
    rule = gateway.read_file(RULE).decode()
    gateway.write_file(RULE, rule.replace("kmoddGatewaySurface = false", "kmoddGatewaySurface = true"))
    restart_polkit(gateway)
    assert ask(gateway, "POST", "/v1/responses", token, {"modules": ["kmodd_test_good"]})[0] == 403
    status, done = ask(gateway, "POST", "/v1/responses", token, {"modules": ["dummy"]})
    try:
        assert (status, done["stage"], done["proven"]) == (200, "responded", True), done
        assert gateway.run("modprobe dummy").code != 0
        assert ask(gateway, "DELETE", "/v1/responses/module:dummy", token)[0] == 403
        assert gateway.run("modprobe dummy").code != 0
        status, plan = ask(gateway, "POST", "/v1/surface/apply", token, {"dry_run": True})
        assert (status, plan["mode"]) == (200, "off")
        assert ask(gateway, "POST", "/v1/surface/apply", token, {"dry_run": True, "weaken": True})[0] == 403
    finally:
        gateway.run("kmodctl respond end module:dummy", check=True)


@pytest.mark.parametrize("change", CHANGES)
def test_its_user_gets_no_further_than_the_rule_as_shipped(gateway: Machine, change: str) -> None:
    """The confused deputy: whoever took the gateway over calls the daemon directly."""
    before = gateway.read_file("/proc/modules")
    answer = gateway.run(f"{USER} {CALL} {change}", timeout=60)
    assert answer.code != 0
    assert "denied" in answer.stderr.lower() or "not authorized" in answer.stderr.lower(), answer.stderr
    assert gateway.read_file("/proc/modules") == before


@pytest.mark.usefixtures("dummy_rule")
@pytest.mark.parametrize("change", OTHER_CHANGES)
def test_its_user_changes_nothing_that_lasts(gateway: Machine, change: str) -> None:
    """No rule of ours lets it configure, import, activate or notify."""
    gateway.run("systemctl start kmodd-notifier.service", check=True)
    where = f"{BUS}.Notifier /org/kmodd1/Notifier" if ".Notifier " in change else f"{BUS} /org/kmodd1"
    before = gateway.check("cat /etc/modprobe.d/* /etc/modules-load.d/* 2>/dev/null; ls -lR /etc/kmodd /var/lib/kmodd")
    answer = gateway.run(f"{USER} busctl --system call {where} {change}", timeout=60)
    assert answer.code != 0
    assert "denied" in answer.stderr.lower() or "not authorized" in answer.stderr.lower(), answer.stderr
    after = gateway.check("cat /etc/modprobe.d/* /etc/modules-load.d/* 2>/dev/null; ls -lR /etc/kmodd /var/lib/kmodd")
    assert after == before


@pytest.mark.usefixtures("dummy_rule")
@pytest.mark.parametrize("change", [one for one in CHANGES if "kmodd_test_good" in one or "override" in one])
def test_its_user_gets_no_further_than_the_list(gateway: Machine, change: str) -> None:
    before = gateway.read_file("/proc/modules")
    assert gateway.run(f"{USER} {CALL} {change}", timeout=60).code != 0
    assert gateway.read_file("/proc/modules") == before


@pytest.mark.usefixtures("dummy_rule")
def test_the_rule_grants_nothing_to_other_users(gateway: Machine) -> None:
    """Saying to be the gateway's token is saying nothing."""
    answer = gateway.run(
        f"{CALL} Load 'sa{{ss}}a{{sv}}' dummy 0 1 on-behalf-of s 'token probe'", user="alice", timeout=60
    )
    assert answer.code != 0
    assert not loaded(gateway, "dummy")
    assert "token probe" not in gateway.journal("KMODD_UID=" + gateway.check("id -u alice").strip(), "-o", "json")


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


CONFIGURE = """polkit.addRule(function (action, subject) {
    if (subject.user === "kmodd-gateway" && action.id === "org.kmodd1.configure" &&
        (action.lookup("on-behalf-of") || "").indexOf("token probe (") === 0) {
        return polkit.Result.YES;
    }
    return undefined;
});
"""


def test_rules_see_for_whom_it_asks_and_so_does_the_journal(gateway: Machine, token: str) -> None:
    """For a change of the configuration, which has no module's operation behind it."""
    gateway.write_file(RULE, CONFIGURE)
    restart_polkit(gateway)
    other = gateway.check("kmodctl token create other --scope configure").strip()
    try:
        body = {"blacklisted": True, "reason": "by the gateway"}
        assert ask(gateway, "PUT", "/v1/config/modules/dummy/blacklist", other, body)[0] == 403
        status, document = ask(gateway, "PUT", "/v1/config/modules/dummy/blacklist", token, body)
        assert (status, document["module"]) == (200, "dummy"), document
        assert "blacklist dummy" in gateway.read_file("/etc/modprobe.d/kmodd-blacklist.conf").decode()
        wait_until(
            lambda: "by the gateway" in gateway.journal("KMODD_EVENT=configuration.changed", "-o", "json"), "the record"
        )
        rows = gateway.journal("KMODD_EVENT=configuration.changed", "-o", "json").splitlines()
        (record,) = [json.loads(row) for row in rows if "by the gateway" in row]
        assert record["KMODD_ON_BEHALF_OF"].startswith("token probe (")
        assert ask(gateway, "DELETE", "/v1/config/modules/dummy/blacklist", token)[0] == 200
    finally:
        gateway.run(["rm", RULE], check=True)
        restart_polkit(gateway)


def test_a_file_goes_through_it_as_a_stream(gateway: Machine, token: str) -> None:
    gateway.write_file(RULE, CONFIGURE.replace("org.kmodd1.configure", "org.kmodd1.import-module"))
    restart_polkit(gateway)
    try:
        path = gateway.check("modinfo -n kmodd_test_good").strip()
        imported = upload(gateway, token, f"cat {path}")
        assert (imported["name"], imported["version"]) == ("kmodd_test_good", "7.1"), imported
        refused = upload(gateway, token, f"head -c 3000 {path}")
        assert (refused["status"], refused["type"]) == (422, "urn:kmodd:error:BadModule")
        # The rule lets it import and remove, which are one action, for this token alone; and not activate.
        assert ask(gateway, "POST", "/v1/store/kmodd_test_good/7.1/activate", token)[0] == 403
        assert ask(gateway, "DELETE", "/v1/store/kmodd_test_good/7.1", token)[0] == 200
    finally:
        gateway.run(["rm", RULE], check=True)
        restart_polkit(gateway)


def test_metrics_are_for_prometheus(gateway: Machine, token: str) -> None:
    lines = gateway.run(["python3", "-c", ASK, "GET", "/metrics", token, ""], timeout=90, check=True).stdout
    status, _, text = lines.partition("\n")
    assert status == "200"
    assert "kmodd_gateway_daemon_up 1.0" in text
    assert 'kmodd_module_size_bytes{module="virtio_blk"}' in text
    assert "# TYPE kmodd_gateway_request_duration_seconds histogram" in text


def test_another_address_is_served_with_tls_alone(gateway: Machine, token: str, tmp_path: Path) -> None:
    """By systemd's socket, with a certificate that the client verifies."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=node7.example.org", "-addext", "subjectAltName=DNS:node7.example.org",
         "-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "chain.pem")],
        check=True,
        capture_output=True,
    )  # fmt: skip
    gateway.run("mkdir -p /etc/kmodd/tls /etc/systemd/system/kmodd-gateway.socket.d", check=True)
    for name in ("key.pem", "chain.pem"):
        gateway.write_file(f"/etc/kmodd/tls/{name}", (tmp_path / name).read_text())
    gateway.run("cd /etc/kmodd/tls && chgrp kmodd-gateway key.pem && chmod 640 key.pem", check=True)
    override = "/etc/systemd/system/kmodd-gateway.socket.d/override.conf"
    gateway.write_file(
        override, "[Socket]\nListenStream=\nListenStream=0.0.0.0:8766\nListenStream=/run/kmodd-test.sock\n"
    )
    restart = "systemctl stop kmodd-gateway.service; systemctl daemon-reload; systemctl restart kmodd-gateway.socket"
    try:
        gateway.run(restart, timeout=90, check=True)
        assert gateway.run("systemctl start kmodd-gateway.service", timeout=90).code != 0
        assert "tokens would cross the network in the clear" in gateway.journal("-u", "kmodd-gateway")
        gateway.write_file(
            "/etc/kmodd/gateway.toml",
            'hosts = ["node7.example.org", "localhost"]\n'
            '[tls]\ncertificate = "/etc/kmodd/tls/chain.pem"\nkey = "/etc/kmodd/tls/key.pem"\n',
        )
        gateway.run(f"systemctl reset-failed kmodd-gateway.service; {restart}", timeout=90, check=True)
        for where in ("8766", "/run/kmodd-test.sock"):
            answer = gateway.run(["python3", "-c", TLS, where, "/v1/modules", token], timeout=120, check=True).stdout
            assert "virtio_blk" in {row["name"] for row in json.loads(answer)["modules"]}
        plain = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8766/health', timeout=30)"
        assert gateway.run(["python3", "-c", plain], timeout=60).code != 0
    finally:
        gateway.run(["rm", "-rf", "/etc/kmodd/gateway.toml", "/etc/kmodd/tls", override])
        gateway.run(f"systemctl reset-failed kmodd-gateway.service; {restart}", timeout=90, check=True)
    assert ask(gateway, "GET", "/v1/modules", token)[0] == 200


def test_revoked_at_once(gateway: Machine, token: str) -> None:
    other = gateway.check("kmodctl token create short --scope read").strip()
    assert ask(gateway, "GET", "/v1/modules", other)[0] == 200
    gateway.run("kmodctl token revoke short", check=True)
    assert ask(gateway, "GET", "/v1/modules", other)[0] == 401
    assert ask(gateway, "GET", "/v1/modules", token)[0] == 200
