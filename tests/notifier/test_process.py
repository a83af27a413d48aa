# SPDX-License-Identifier: LGPL-2.1-or-later
"""The notifier as a process beside the real daemon: restarts, kills, bad files, dead hosts, the command line."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from standardwebhooks import Webhook as Verifier

from kmodd.client import Client
from kmodd.errors import Conflict, NoSuchEndpoint, NotPermitted, UnknownParameter
from kmodd.notifier.ingest import LIMIT
from kmodd.notifier.main import parse
from tests.cli.private_bus import private_bus
from tests.cli.runner import Runner
from tests.notifier.receiver import Receiver, counting, receiver, wait_until
from tests.notifier.running import KEY, ROOT, Stage, stage


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Stage]:
    with stage(tmp_path) as made:
        yield made


@pytest.fixture
def kmodctl(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, running: Stage) -> Runner:
    return Runner(running.address, capsys, monkeypatch)


def types(found: Receiver) -> list[str]:
    return [json.loads(request.body)["type"] for request in found.requests]


def test_notifications_are_delivered_and_verify(running: Stage) -> None:
    with receiver() as server:
        running.configure(server.port, rule='events = ["load", "unload", "failure"]')
        running.start()
        running.load("dummy", "kmodd_test_fail")
        server.wait_for(3)
        assert running.stop() == 0
    assert types(server) == ["module.loaded", "module.unloaded", "operation.failed"]
    for request in server.requests:
        Verifier(KEY).verify(request.body, request.headers)
    failed = json.loads(server.requests[2].body)["data"]
    assert (failed["error"], failed["errno"], failed["uid"]) == ("InitFailed", 5, os.getuid())
    assert any("flux capacitor" in line for line in failed["kernel_log"])


def test_unsigned_modules_are_notified_when_they_come(running: Stage) -> None:
    with receiver() as server:
        running.configure(server.port, rule='events = ["unsigned"]')
        running.start()
        running.daemon(lambda client: client.load("nvidia"))()
        server.wait_for(1)
        running.stop()
        running.start()
        running.daemon(lambda client: client.load("dummy"))()
        running.daemon(lambda client: client.unload("nvidia"))()
        time.sleep(1)
        running.daemon(lambda client: client.load("nvidia"))()
        server.wait_for(2)
        running.stop()
    for request in server.requests:
        document = json.loads(request.body)
        assert (document["type"], document["data"]["modules"]) == ("module.unsigned", ["nvidia"])
    assert len({request.id for request in server.requests}) == len(server.requests) == 2


def test_an_unsigned_module_that_came_and_went_while_it_was_stopped_is_notified(running: Stage) -> None:
    with receiver() as server:
        running.configure(server.port, rule='events = ["unsigned"]')
        running.start()
        running.stop()
        running.daemon(lambda client: client.load("nvidia"))()
        time.sleep(0.5)  # the daemon looks at what is loaded a moment after the kernel's word
        running.daemon(lambda client: client.unload("nvidia"))()
        running.start()
        server.wait_for(1)
        running.stop()
    (request,) = server.requests
    data = json.loads(request.body)["data"]
    assert (data["modules"], data["uid"]) == (["nvidia"], os.getuid())


def test_a_refusal_before_there_is_a_job_is_notified_at_once(running: Stage) -> None:
    """There is no signal with what was refused: it is in the history, and a signal without a word says to look there."""

    async def refused(client: Client) -> None:
        for _ in range(2):
            with pytest.raises(UnknownParameter):
                await client.load("dummy", {"nosuch": "1"})

    with receiver() as server:
        running.configure(server.port, rule='events = ["failure"]\nerrors = ["UnknownParameter"]')
        running.start()
        time.sleep(3)  # whatever the start gave reason to look at has been looked at
        began = time.monotonic()
        running.daemon(refused)()
        server.wait_for(2)
        assert time.monotonic() - began < 15, "the poll is every five minutes"
        running.stop()
    assert len({request.id for request in server.requests}) == 2
    for request in server.requests:
        data = json.loads(request.body)["data"]
        assert (data["error"], data["modules"]) == ("UnknownParameter", ["dummy"])


STRANGER = """
import asyncio, os, sys
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
from kmodd.client import Client
from kmodd.errors import KmoddError

async def main():
    async with await Client.connect(sys.argv[1]) as client:
        for module in ("nosuch", "mailto:root@evil.example"):
            try:
                await client.load(module, reason=sys.argv[2])
            except KmoddError as error:
                print(type(error).__name__)

asyncio.run(main())
"""


@pytest.fixture
def open_to_all() -> Iterator[Stage]:
    """A stage whose bus other users reach: pytest keeps its folders to itself."""
    with tempfile.TemporaryDirectory(prefix="kmodd-") as folder:
        Path(folder).chmod(0o755)
        with stage(Path(folder)) as made:
            yield made


def test_a_strangers_words_reach_no_chat_and_no_webhook(open_to_all: Stage) -> None:
    """Any local user can have a request refused; what it says must not be read by administrators as if it were kmodd's."""
    if os.getuid() != 0:
        pytest.fail("only root can become somebody else")
    running = open_to_all
    reason = "[URGENT: approve the kernel update](https://evil.example/login) **IT security** <!channel> @everyone"
    with receiver() as server:
        running.configure(server.port, rule='events = ["failure", "denied"]')
        text = running.config.read_text()
        chat = f'[webhook.chat]\nurl = "http://127.0.0.1:{server.port}/chat"\nallow-http = true\nformat = "chat"\n'
        running.config.write_text(text.replace("[webhook.a]", f"{chat}[webhook.a]").replace('["a"]', '["a", "chat"]'))
        running.start()
        time.sleep(3)  # whatever the start gave reason to look at has been looked at
        command = [sys.executable, "-c", STRANGER, running.address, reason]
        refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
        assert refused.stdout.split() == ["NoSuchModule", "NoSuchModule"]
        server.wait_for(4)
        running.stop()
    bodies = [request.body.decode() for request in server.requests]
    assert len([body for body in bodies if '"text"' in body]) == 2
    for body in bodies:
        assert "nosuch" in body or "mailto" in body
        assert not [word for word in ("URGENT", "login", "IT security", "!channel", "@everyone") if word in body]
    for body in (json.loads(body)["text"] for body in bodies if '"text"' in body):
        assert "@" not in body
        assert "evil.example" not in body


def test_a_dead_mail_server_does_not_hold_up_the_end(running: Stage) -> None:
    with counting() as silent:
        running.configure(
            more=f'[smtp]\nhost = "localhost"\nport = {silent.port}\nfrom = "kmodd@example.org"\nsecurity = "none"\n'
            '[email.ops]\nto = ["root@example.org"]\ndigest = 0\n[[rule]]\nevents = ["load"]\nnotify = ["ops"]\n'
        )
        running.start()
        running.load("dummy")
        wait_until(lambda: silent.connections > 0, "it waits for a greeting")
        assert running.notifier is not None
        running.notifier.terminate()
        assert running.notifier.wait(8) == 0
        running.notifier = None
        running.start()
        assert running.endpoint("ops")["waiting"] == 1


def test_nothing_is_lost_or_repeated_over_restarts(running: Stage) -> None:
    with receiver() as server:
        running.configure(server.port, rule='events = ["load", "unload"]')
        running.start()
        running.load("dummy")
        server.wait_for(2)
        running.stop()
        running.load("tun", "loop")  # while it is away
        running.start()
        server.wait_for(6)
        running.stop_daemon()
        wait_until(lambda: "not running" in running.status()["trouble"], "it notices")
        running.start_daemon()
        running.load("veth")
        server.wait_for(8)
        assert running.status()["trouble"] == ""
    modules = [json.loads(request.body)["data"]["modules"] for request in server.requests]
    assert modules == [["dummy"]] * 2 + [["tun"]] * 2 + [["loop"]] * 2 + [["veth"]] * 2
    assert len({request.id for request in server.requests}) == 8


def test_a_long_absence_is_read_in_several_replies(running: Stage) -> None:
    pairs = LIMIT // 2 + 20
    with receiver() as server:
        running.configure(server.port, rule='events = ["load", "unload"]')
        running.start()
        running.stop()
        running.load(*["dummy"] * pairs)
        running.start()
        server.wait_for(2 * pairs, 60)
        running.stop()
    assert types(server) == ["module.loaded", "module.unloaded"] * pairs
    assert len({request.id for request in server.requests}) == 2 * pairs


def test_kill_9_at_random_points_loses_nothing(running: Stage) -> None:
    chance = random.Random(4)  # noqa: S311 - for choosing moments, the same ones each run
    rounds = 8
    with receiver() as server:
        running.configure(server.port, rule='events = ["load", "unload"]')
        running.start()
        for _ in range(rounds):
            running.load("dummy", "tun")
            time.sleep(chance.uniform(0, 0.5))
            running.kill()
            running.start(wait=False)
            time.sleep(chance.uniform(0, 1.2))
            running.kill()
            running.start()
        wait_until(lambda: len({request.id for request in server.requests}) >= 4 * rounds, "all of it", 30)
        wait_until(lambda: running.endpoint("a")["waiting"] == 0, "nothing waits")
    bodies: dict[str, bytes] = {}
    for request in server.requests:
        assert bodies.setdefault(request.id, request.body) == request.body, "the same id is the same message"
    assert len(bodies) == 4 * rounds
    first = list(dict.fromkeys(request.id for request in server.requests))
    times = [json.loads(bodies[one])["timestamp"] for one in first]
    assert times == sorted(times), "in order"


def test_a_dead_host_delays_no_other(running: Stage) -> None:
    with receiver() as server, counting() as silent:
        running.configure(server.port, silent.port, rule='events = ["load", "unload"]')
        running.start()
        began = time.monotonic()
        running.load("dummy", "tun", "loop")
        server.wait_for(6)
        assert time.monotonic() - began < 5
        assert running.endpoint("b")["waiting"] == 6
        assert silent.connections == 1
        wait_until(lambda: running.endpoint("a")["delivered"] == 6, "all six are noted")
        samples = running.ask(lambda one: one.metrics())()
        of = {(one.name.removeprefix("kmodd_notifier_"), *dict(one.labels).values()): one.value for one in samples}
        assert (of["delivered_total", "a"], of["waiting", "a"], of["oldest_seconds", "a"]) == (6, 0, 0)
        assert (of["delivered_total", "b"], of["waiting", "b"], of["enabled", "b"]) == (0, 6, 1)
        assert 0 < of["oldest_seconds", "b"] < 60
        running.stop()


def test_without_permission_not_a_packet_leaves(running: Stage) -> None:
    with counting() as inner:
        running.configure(inner.port)
        running.config.write_text(running.config.read_text().replace("127.0.0.0/8", "10.0.0.0/8"))
        running.start()
        running.load("dummy")
        wait_until(lambda: running.endpoint("a")["failures"] == 1, "an attempt")
        assert "no public address" in running.endpoint("a")["last-error"]
        running.stop()
    assert inner.connections == 0


def test_410_disables_until_it_is_enabled(running: Stage, kmodctl: Runner) -> None:
    with receiver() as server:
        server.answers = [(410, {})]
        running.configure(server.port, rule='events = ["load"]')
        running.start()
        running.load("dummy")
        wait_until(lambda: not running.endpoint("a")["enabled"], "disabled")
        running.load("tun")
        time.sleep(1)
        assert len(server.requests) == 1
        assert "disabled: the receiver answered 410" in kmodctl("notify", "status").out
        assert "enable it first" in kmodctl("notify", "test", "a").err
        assert kmodctl("notify", "enable", "a").status == 0
        server.wait_for(2)
        running.stop()
    assert server.requests[0].id == server.requests[1].id


def test_a_bad_file_leaves_the_old_configuration_in_force(running: Stage, kmodctl: Runner) -> None:
    with receiver() as server:
        running.configure(server.port, rule='events = ["load"]')
        process = running.start()
        good = running.config.read_text()
        running.config.write_text(good.replace("[[rule]]", "[[rules]]"))
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: running.status()["configuration-error"] != "", "the complaint")
        assert "did you mean rule?" in running.status()["configuration-error"]
        assert "previous configuration in effect" in kmodctl("notify", "status").out
        assert "did you mean rule?" in kmodctl("notify", "reload").err
        running.load("dummy")
        server.wait_for(1)
        running.config.write_text(good)
        assert kmodctl("notify", "reload").status == 0
        assert running.status()["configuration-error"] == ""
        running.stop()
        running.config.write_text("x = 1")
        assert running.start(wait=False).wait(15) == 78
        running.notifier = None


def test_endpoints_come_and_go_by_the_command_line(running: Stage, kmodctl: Runner) -> None:
    running.configure(more='[smtp]\nhost = "localhost"\nfrom = "kmodd@example.org"\n')
    running.start()
    added = kmodctl(
        "notify", "add", "hook", "-", "--event", "failure", "--module", "snd-*", stdin="https://h.example/secret\n"
    )
    key = added.out.splitlines()[-1]
    assert key.startswith("whsec_")
    assert kmodctl("notify", "add", "hook", "https://h.example/").status == Conflict.exit_code
    assert kmodctl("notify", "add", "ops", "root@example.org", "--per-hour", "3", "--severity", "error").status == 0
    rows = {row["name"]: row for row in kmodctl("notify", "list", "--json").document}
    assert (rows["hook"]["target"], rows["hook"]["managed"]) == ("h.example", True)
    assert (rows["ops"]["channel"], rows["ops"]["target"]) == ("email", "1 recipient")
    assert kmodctl("notify", "disable", "ops").status == 0
    running.stop()
    running.start()
    assert "disabled" in kmodctl("notify", "list").out
    assert kmodctl("notify", "remove", "hook").status == 0
    assert kmodctl("notify", "remove", "hook").status == NoSuchEndpoint.exit_code
    assert not list((running.state / "secrets").iterdir())
    running.stop()
    shown = running.log.read_text() + kmodctl("notify", "status").err
    assert "/secret" not in shown
    assert key not in shown


def test_files_that_cannot_be_written_are_no_bug(running: Stage, kmodctl: Runner) -> None:
    running.configure()
    running.start()
    (running.state / ".managed.json.new").mkdir()  # in the way of what it would write
    done = kmodctl("notify", "add", "hook", "https://h.example/")
    assert done.status == NotPermitted.exit_code
    assert "the notifier cannot use its files: Is a directory" in done.err
    assert not list((running.state / "secrets").iterdir())
    (running.state / ".managed.json.new").rmdir()
    assert kmodctl("notify", "add", "hook", "https://h.example/").status == 0
    running.stop()
    assert "Traceback" not in running.log.read_text()


def test_a_mail_servers_certificates_are_looked_for_at_once(running: Stage) -> None:
    """And not at the first mail, which would speak of a connection that failed."""
    (running.folder / "empty.pem").touch()
    for name, why in (("none.pem", "No such file or directory"), ("empty.pem", "no certificates in it")):
        mail = f'[smtp]\nhost = "localhost"\nfrom = "kmodd@example.org"\nca-file = "{running.folder}/{name}"\n'
        running.configure(more=mail + '[email.ops]\nto = ["root@example.org"]\n')
        assert running.start(wait=False).wait(15) == 78
        assert f"smtp: ca-file cannot be used: {why}" in running.log.read_text()
    running.notifier = None


def test_losing_the_bus_ends_it(tmp_path: Path) -> None:
    with private_bus(tmp_path) as address:
        made = Stage(tmp_path, address)
        made.configure()
        made.start_daemon()
        process = made.start()
        made.stop_daemon()
    assert process.wait(15) == 1
    assert "connection to the bus was lost" in made.log.read_text()


@pytest.mark.parametrize(
    ("arguments", "environment", "state"),
    [
        ([], {}, "/var/lib/kmodd-notifier"),
        ([], {"STATE_DIRECTORY": "/a:/b"}, "/a"),
        (["--state", "/c"], {"STATE_DIRECTORY": "/a"}, "/c"),
    ],
)
def test_the_state_folder_is_an_option_then_systemds_then_the_default(
    arguments: list[str], environment: dict[str, str], state: str
) -> None:
    assert parse(arguments, environment).state == Path(state)


@pytest.mark.parametrize("arguments", [["--conf", "x"], ["--config"], ["more"], ["--check=1"]])
def test_a_command_line_that_makes_no_sense_is_exit_status_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parse(arguments, {})
    assert left.value.code == 2
