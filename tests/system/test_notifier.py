# SPDX-License-Identifier: LGPL-2.1-or-later
"""kmodd-notifier as it is installed: its user, what polkit lets it do, its sandbox, its memory, and that it delivers."""

import json
import time
from typing import Any

import pytest

from tests.system.client import Kmodctl
from tests.system.service import CALL, resident, show, wait_until
from tests.vm.machine import Machine

UNIT = "kmodd-notifier.service"
CONFIG = """
allow-networks = ["127.0.0.0/8"]
[webhook.local]
url = "http://127.0.0.1:8099/hook"
allow-http = true
secret-file = "/etc/kmodd/notify.key"
[[rule]]
events = ["load", "unload", "failure"]
notify = ["local"]
"""
RECEIVER = r"""
import http.server, json
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with open("/root/received", "a") as file:
            file.write(json.dumps([self.headers["webhook-id"], body]) + "\n")
        self.send_response(204)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", 8099), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def notifying(vm: Machine, kmodctl: Kmodctl) -> Machine:
    """The machine, with the notifier started and somebody to tell."""
    vm.write_file("/root/receiver.py", RECEIVER)
    vm.check("touch /root/received; systemd-run --unit=receiver python3 /root/receiver.py")
    vm.write_file("/etc/kmodd/notify.toml", CONFIG)
    vm.check("(printf whsec_; head -c 32 /dev/urandom | base64) > /etc/kmodd/notify.key")
    vm.check("chgrp kmodd-notifier /etc/kmodd/notify.key; chmod 0640 /etc/kmodd/notify.key")
    vm.run(["systemctl", "enable", "--now", UNIT], timeout=90, check=True)
    wait_until(lambda: status(kmodctl)["seen"] > 0, "it watches")
    return vm


def status(kmodctl: Kmodctl) -> Any:
    return json.loads(kmodctl("notify", "status", "--json").out)


def received(vm: Machine) -> list[Any]:
    return [json.loads(line) for line in vm.read_file("/root/received").decode().splitlines()]


def test_it_tells_of_what_kmodd_and_others_did(notifying: Machine) -> None:
    notifying.check(f"{CALL} Load 'sa{{ss}}a{{sv}}' dummy 0 0")
    notifying.check("modprobe kmodd_test_good")
    notifying.run(f"{CALL} Load 'sa{{ss}}a{{sv}}' kmodd_test_fail 0 0")
    wait_until(lambda: len(received(notifying)) >= 3, "three notices")
    told = [(body["type"], body["data"]["modules"]) for _, body in received(notifying)]
    assert told == [
        ("module.loaded", ["dummy"]),
        ("module.appeared", ["kmodd_test_good"]),
        ("operation.failed", ["kmodd_test_fail"]),
    ]
    assert any("kmodd_test_fail" in line for line in received(notifying)[2][1]["data"]["kernel_log"])


def test_killed_and_away_it_misses_nothing(notifying: Machine) -> None:
    before = len(received(notifying))
    notifying.check(f"systemctl kill --signal=KILL {UNIT}; rmmod kmodd_test_good; modprobe kmodd_test_good")
    notifying.check(f"systemctl stop {UNIT}; rmmod kmodd_test_good; systemctl restart kmodd.service", timeout=90)
    notifying.check(f"systemctl start {UNIT}", timeout=90)
    wait_until(lambda: len(received(notifying)) >= before + 3, "three more")
    time.sleep(2)
    rows = received(notifying)
    types = [body["type"] for _, body in rows[before:]]
    assert types == ["module.disappeared", "module.appeared", "module.disappeared"]
    assert len({one for one, _ in rows}) == len(rows)


def test_its_user_reads_the_history_and_does_nothing_else(notifying: Machine) -> None:
    run = "runuser -u kmodd-notifier --"
    notifying.check(f"{run} {CALL} GetHistory 'a{{sv}}' 0")
    for call in ("Load 'sa{ss}a{sv}' loop 0 0", "Unload 'sa{sv}' dummy 0", "SetParameter sss loop max_loop 1"):
        assert notifying.run(f"{run} {CALL} {call}", timeout=60).code != 0, call
    assert notifying.run("test -e /sys/module/dummy/initstate").code == 0


def test_who_is_not_allowed_manages_nothing(notifying: Machine, kmodctl: Kmodctl) -> None:
    answer = notifying.run("kmodctl --no-ask-password notify disable local", user="alice", timeout=60)
    assert answer.code == 4
    assert status(kmodctl)["endpoints"][0]["enabled"]
    shown = notifying.run("kmodctl notify status", user="alice", timeout=60)
    assert "local (webhook, 127.0.0.1)" in shown.stdout


def test_other_users_cannot_own_its_name(notifying: Machine, kmodctl: Kmodctl) -> None:
    for user in ("alice", "root"):
        answer = notifying.run(
            "busctl call org.freedesktop.DBus / org.freedesktop.DBus RequestName su org.kmodd1.Notifier 3", user=user
        )
        assert "denied" in answer.stderr, user
    assert status(kmodctl)["trouble"] == ""


def test_it_is_small_and_shut_in(notifying: Machine) -> None:
    pid = int(show(notifying, "MainPID", UNIT))
    assert resident(notifying, pid) <= 40 * 1024
    facts = notifying.check(f"cat /proc/{pid}/status")
    assert "CapEff:\t0000000000000000" in facts
    assert "NoNewPrivs:\t1" in facts
    assert "Seccomp:\t2" in facts
    assert notifying.check("stat -c '%U %a' /var/lib/kmodd-notifier/").strip() == "kmodd-notifier 700"
    secrets = notifying.check("cut -d_ -f2 /etc/kmodd/notify.key").strip()
    assert secrets not in notifying.journal("-u", UNIT)


def test_it_comes_with_kmodd_where_an_administrator_says_so(notifying: Machine) -> None:
    notifying.check(f"systemctl disable --now {UNIT}; systemctl add-wants kmodd.service {UNIT}", timeout=90)
    notifying.check("systemctl stop kmodd.service", timeout=90)
    assert notifying.run(f"systemctl is-active {UNIT}").stdout == "inactive\n"
    notifying.check("kmodctl list >/dev/null", timeout=90)
    wait_until(lambda: show(notifying, "ActiveState", UNIT) == "active", "it came with kmodd")


def test_looking_at_its_metrics_does_not_start_it(notifying: Machine) -> None:
    notifying.check(f"rm -r /etc/systemd/system/kmodd.service.wants; systemctl daemon-reload; systemctl stop {UNIT}")
    code = (
        "import asyncio, sys; sys.path.insert(0, '/usr/local/lib/kmodd')\n"
        "from kmodd.client.notifier import NotifierClient\n"
        "async def main():\n"
        "    async with await NotifierClient.connect() as notifier: await notifier.metrics()\n"
        "asyncio.run(main())"
    )
    assert "kmodd-notifier is not running" in notifying.run(["python3", "-c", code], timeout=60).stderr
    assert notifying.run(f"systemctl is-active {UNIT}").stdout == "inactive\n"
    notifying.check("kmodctl notify status", timeout=90)
    assert show(notifying, "ActiveState", UNIT) == "active"
