# SPDX-License-Identifier: LGPL-2.1-or-later
"""Everything there is to tell really happens on a real kernel and is told: to webhooks, to a chat, by mail, on a desktop."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.notifier.receiver import make_certificate
from tests.system.client import Kmodctl
from tests.system.guest_sniffer import PORT, PUBLIC, PUBLIC6
from tests.system.service import CALL, wait_until
from tests.vm.machine import Machine

HERE = Path(__file__).parent
HOOK = 'allow-http = true\nsecret-file = "/etc/kmodd/notify.key"\n'
CONFIG = f"""
allow-networks = ["127.0.0.0/8"]
[webhook.all]
url = "http://127.0.0.1:8099/all"
{HOOK}
[webhook.chat]
url = "http://127.0.0.1:8099/chat"
allow-http = true
format = "chat"
[webhook.alices]
url = "http://127.0.0.1:8099/alices"
{HOOK}
[webhook.grave]
url = "http://127.0.0.1:8099/grave"
{HOOK}
[webhook.other]
url = "http://127.0.0.1:8099/other"
{HOOK}
[smtp]
host = "localhost"
port = 2525
from = "kmodd@example.org"
ca-file = "/etc/kmodd/mail.pem"
[email.ops]
to = ["root@example.org"]
digest = 6
[[rule]]
notify = ["all"]
[[rule]]
events = ["failure"]
errors = ["InitFailed"]
modules = ["kmodd_test_f*"]
notify = ["chat", "ops"]
[[rule]]
uids = [1000]
notify = ["alices"]
[[rule]]
severity = "error"
notify = ["grave"]
[[rule]]
modules = ["nosuch*"]
notify = ["other"]
"""


@pytest.fixture(scope="module")
def telling(vm: Machine, kmodctl: Kmodctl, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """The machine, with the notifier asked for something and everybody to tell."""
    certificate, key = make_certificate(tmp_path_factory.mktemp("mail"), "localhost")
    vm.write_file("/etc/kmodd/mail.pem", certificate.read_bytes())
    vm.write_file("/root/mail.key", key.read_bytes())
    for name in ("guest_receiver.py", "guest_sniffer.py"):
        vm.write_file(f"/opt/{name}", (HERE / name).read_bytes())
    for name, words in (
        ("hooks", "http /root/hooks"),
        ("mails", "smtp /root/mails /etc/kmodd/mail.pem /root/mail.key"),
    ):
        vm.check(f"touch /root/{name}; systemd-run -q --unit={name} python3 /opt/guest_receiver.py {words}")
    wait_until(
        lambda: {"8099", "2525"} <= set(vm.check("ss -Hltn | sed 's/.*:\\([0-9]*\\) .*/\\1/'").split()), "they listen"
    )
    vm.write_file("/etc/kmodd/notify.toml", CONFIG)
    vm.check("(printf whsec_; head -c 32 /dev/urandom | base64) > /etc/kmodd/notify.key")
    vm.check("chgrp kmodd-notifier /etc/kmodd/notify.key; chmod 0640 /etc/kmodd/notify.key")
    assert vm.run("systemctl is-active kmodd-notifier").stdout == "inactive\n"
    # On demand: the first who asks it something starts it.
    wait_until(lambda: status(kmodctl)["seen"] > 0, "it was started and watches")
    assert vm.check("systemctl is-active kmodd-notifier") == "active\n"
    return vm


def status(kmodctl: Kmodctl) -> Any:
    return json.loads(kmodctl("notify", "status", "--json").out)


def lines(vm: Machine, file: str) -> list[Any]:
    return [json.loads(line) for line in vm.read_file(file).decode().splitlines()]


def told(vm: Machine, path: str = "/all") -> list[Any]:
    return [json.loads(row["body"]) for row in lines(vm, "/root/hooks") if row["path"] == path]


def waited(vm: Machine, kind: str, **fields: object) -> Any:
    """The first notice of a kind about this, once it is there."""

    def found() -> list[Any]:
        return [
            body["data"]
            for body in told(vm)
            if body["data"]["kind"] == kind and all(body["data"].get(key) == value for key, value in fields.items())
        ]

    wait_until(lambda: bool(found()), f"a notice of {kind} with {fields}", 60)
    return found()[0]


def test_loads_failures_and_refusals(telling: Machine) -> None:
    telling.check(f"{CALL} Load 'sa{{ss}}a{{sv}}' dummy 0 1 reason s 'a network to play with'")
    telling.run(f"{CALL} Load 'sa{{ss}}a{{sv}}' kmodd_test_fail 0 0")
    telling.run(f"{CALL} Load 'sa{{ss}}a{{sv}}' loop 1 nosuch 1 0")
    assert telling.run(f"{CALL} Load 'sa{{ss}}a{{sv}}' loop 0 0", user="alice").code != 0
    telling.check(f"{CALL} Unload 'sa{{sv}}' dummy 0")
    loaded = waited(telling, "load", modules=["dummy"])
    assert (loaded["uid"], loaded["reason"], loaded["severity"]) == (0, "a network to play with", "info")
    assert waited(telling, "unload")["modules"] == ["dummy"]
    failed = waited(telling, "failure", error="InitFailed")
    assert failed["modules"] == ["kmodd_test_fail"]
    assert any("kmodd_test_fail" in line for line in failed["kernel_log"])
    # What never became a job: refused for what was asked, and for who asked.
    assert waited(telling, "failure", error="UnknownParameter")["modules"] == ["loop"]
    denied = waited(telling, "denied")
    assert (denied["uid"], denied["modules"]) == (1000, ["loop"])
    assert denied["error"] in ("AccessDenied", "InteractiveAuthorizationRequired")


def test_unsigned_modules_drift_and_the_store(telling: Machine) -> None:
    telling.check("modprobe kmodd_test_good")
    assert "without a valid signature" in waited(telling, "unsigned", modules=["kmodd_test_good"])["message"]
    assert waited(telling, "load", modules=["kmodd_test_good"]).get("uid") is None
    telling.check("rmmod kmodd_test_good")
    telling.check("mkdir -p /etc/kmodd/modules.d")
    telling.write_file("/etc/kmodd/modules.d/test.toml", '[module.kmodd_test_params]\nstate = "loaded"\n')
    telling.check("systemctl reload kmodd")
    assert waited(telling, "drift")["modules"] == ["kmodd_test_params"]
    assert waited(telling, "health")["severity"] == "warning"
    telling.check(
        "cp /lib/modules/$(uname -r)/updates/kmodd-test/kmodd_test_dep_a.ko /root/kmodd_test_new.ko; "
        "kmodctl store import --shadow /root/kmodd_test_new.ko --version 7",
        timeout=120,
    )
    assert waited(telling, "store")["modules"] == ["kmodd_test_dep_a"]


def test_a_crash_and_a_module_that_hangs(telling: Machine) -> None:
    telling.run(f"{CALL} Load 'sa{{ss}}a{{sv}}' kmodd_test_init_oops 0 0", timeout=90)
    crashed = waited(telling, "crash")
    assert (crashed["modules"], crashed["error"], crashed["severity"]) == (["kmodd_test_init_oops"], "Crashed", "error")
    assert any("RIP" in line for line in crashed["kernel_log"])
    telling.run(f"{CALL} Load 'sa{{ss}}a{{sv}}' kmodd_test_init_wait 0 1 timeout u 2", timeout=90)
    stuck = waited(telling, "stuck", error="TimedOut")
    assert (stuck["modules"], stuck["severity"]) == (["kmodd_test_init_wait"], "error")
    telling.check("echo 1 > /sys/kernel/kmodd_test_init_wait/release")
    assert waited(telling, "stuck", severity="notice")["modules"] == ["kmodd_test_init_wait"]
    assert waited(telling, "health", severity="error")


def test_filters_choose_who_hears_of_what(telling: Machine) -> None:
    assert {body["data"]["kind"] for body in told(telling, "/alices")} == {"denied"}
    assert {"crash", "stuck", "health"} == {body["data"]["kind"] for body in told(telling, "/grave")}
    assert {body["data"]["severity"] for body in told(telling, "/grave")} == {"error"}
    assert told(telling, "/other") == []
    (chat,) = told(telling, "/chat")
    assert chat.keys() == {"text"}
    assert "kernel: " in chat["text"]


def test_a_mail_collects_what_comes_within_its_time(telling: Machine) -> None:
    wait_until(lambda: len(lines(telling, "/root/mails")) >= 1, "the first mail", 60)
    before = len(lines(telling, "/root/mails"))
    for _ in range(4):
        telling.run(f"{CALL} Load 'sa{{ss}}a{{sv}}' kmodd_test_fail 0 0")

    def reported() -> list[int]:
        mails = lines(telling, "/root/mails")[before:]
        assert all((mail["to"], mail["tls"]) == (["root@example.org"], True) for mail in mails)
        return [mail["text"].count("event: operation.failed (warning)") for mail in mails]

    wait_until(lambda: sum(reported()) == 4, "all of them", 90)
    # On a slow machine they may take longer than the digest's time; in any case they are not a mail each.
    assert len(reported()) < 4


def test_ids_are_unique_and_nothing_is_wrong(telling: Machine, kmodctl: Kmodctl) -> None:
    rows = [row for row in lines(telling, "/root/hooks") if row["path"] == "/all"]
    ids = [row["headers"]["webhook-id"] for row in rows]
    assert len(set(ids)) == len(ids)
    found = status(kmodctl)
    assert found["trouble"] == ""
    assert {row["name"]: (row["failures"], row["waiting"]) for row in found["endpoints"]} == dict.fromkeys(
        ("all", "alices", "chat", "grave", "ops", "other"), (0, 0)
    )
    assert "Traceback" not in telling.journal("-u", "kmodd-notifier.service", "-u", "kmodd.service")


def test_the_desktop_of_a_user_shows_what_failed(telling: Machine) -> None:
    uid = telling.check("id -u alice").strip()
    home = f"XDG_RUNTIME_DIR=/run/user/{uid} DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/{uid}/bus"
    telling.check(f"systemctl start user@{uid}.service", timeout=90)
    telling.check(
        f"runuser -u alice -- env {home} dbus-daemon --session --fork --address=unix:path=/run/user/{uid}/bus;"
        f"install -o alice /dev/null /run/shown"
    )
    telling.start(f"{home} python3 /opt/guest_receiver.py notifications /run/shown", user="alice")
    telling.check(
        f"{home} systemctl --user set-environment DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/{uid}/bus", user="alice"
    )
    telling.check(f"{home} systemctl --user start kmodd-desktop-notify", user="alice", timeout=90)

    def shown() -> str:
        telling.run(f"{CALL} Load 'sa{{ss}}a{{sv}}' kmodd_test_fail 0 0")
        return telling.read_file("/run/shown").decode()

    wait_until(lambda: "load kmodd_test_fail: module failed to initialise" in shown(), "a notification", 90)
    assert telling.check(f"{home} systemctl --user is-active kmodd-desktop-notify", user="alice") == "active\n"


ADDRESSES = {
    "loopback": f"https://127.0.0.1:{PORT}/",
    "loopback6": f"https://[::1]:{PORT}/",
    "mapped": f"https://[::ffff:127.0.0.1]:{PORT}/",
    "metadata": f"https://169.254.169.254:{PORT}/",
    "private": f"https://10.0.0.1:{PORT}/",
    "decimal": f"https://2130706433:{PORT}/",
    "hex": f"https://0x7f000001:{PORT}/",
    "octal": f"https://0177.0.0.1:{PORT}/",
    "short": f"https://127.1:{PORT}/",
    "zero": f"https://0:{PORT}/",
    "linklocal": f"https://[fe80::1]:{PORT}/",
    "localhost": f"https://localhost:{PORT}/",
    **{f"n-{name}": f"https://{name}.test:{PORT}/" for name in ("inner", "metadata", "inner6", "mapped")},
}
REACHED = {f"n-{name}": f"https://{name}.test:{PORT}/" for name in ("public", "public6", "both", "rebind")}


def test_no_packet_leaves_for_an_address_that_is_refused(telling: Machine, kmodctl: Kmodctl) -> None:
    """Every packet on every interface is looked at; public addresses show that the looking works."""
    # A way to everywhere, so that it is not the routes that keep packets from leaving.
    telling.check(
        "modprobe dummy numdummies=0; ip link add out type dummy; ip addr add 203.0.113.2/24 dev out; ip link set out up; "
        "ip -6 addr add 2001:db8::2/64 dev out nodad; ip route replace default dev out; ip -6 route replace default dev out; "
        "ip addr add 169.254.169.254/32 dev lo; ip addr add 10.0.0.1/32 dev lo"
    )
    telling.write_file("/etc/resolv.conf", "nameserver 127.0.0.1\noptions timeout:2 attempts:2\n")
    telling.check("systemd-run -q --unit=sniffer python3 /opt/guest_sniffer.py /root/packets")
    wait_until(lambda: telling.run("test -e /root/packets").code == 0, "it looks")
    config = "".join(
        f'[webhook.{name}]\nurl = "{url}"\ntimeout = 2\nsecret-file = "/etc/kmodd/notify.key"\n'
        for name, url in (ADDRESSES | REACHED).items()
    )
    telling.write_file("/etc/kmodd/notify.toml", config)
    telling.check("systemctl restart kmodd-notifier", timeout=90)
    for name in ADDRESSES | REACHED:
        assert kmodctl("notify", "test", name).code == 0, name

    def attempts(row: Any) -> bool:
        return bool(row["failures"] >= 1)

    wait_until(lambda: all(map(attempts, status(kmodctl)["endpoints"])), "each was tried", 120)
    # Whatever the name's server says next: this is the moment of a rebinding attack.
    assert kmodctl("notify", "enable", "n-rebind").code == 0
    time.sleep(6)
    errors = {row["name"]: row["last-error"] for row in status(kmodctl)["endpoints"]}
    assert not [
        name for name in ADDRESSES if not any(w in errors[name] for w in ("no public address", "cannot be resolved"))
    ], errors
    assert "no public address" in errors["n-rebind"]
    packets = telling.read_file("/root/packets").decode().split()
    assert set(packets) == {PUBLIC, PUBLIC6}
