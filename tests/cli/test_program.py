# SPDX-License-Identifier: LGPL-2.1-or-later
"""kmodctl as a process: signals, pipes, terminals, passwords, start-up."""

import argparse
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kmodd.cli.arguments import ExitCode, make_parser, parse
from kmodd.cli.main import TerminalAgent
from kmodd.client import JOB, OBJECTS, PROPERTIES
from kmodd.names import SCOPES
from tests.cli import samples
from tests.cli.fake_daemon import FakeDaemon, Later, Refusal
from tests.cli.runner import Program

ROOT = Path(__file__).parents[2]
DENIED = Refusal("org.freedesktop.DBus.Error.AccessDenied", "Not allowed to read history.")


def wait_for(fake: FakeDaemon, member: str) -> None:
    """Wait until the daemon was asked."""
    deadline = time.monotonic() + 10
    while not fake.asked(member):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def read_line(process: "subprocess.Popen[str]") -> str:
    """The next line of its output."""
    assert process.stdout is not None
    return process.stdout.readline()


def on_terminal(command: list[str], **environment: str) -> tuple[int, str]:
    """Run a command on a terminal of its own; its status and all it wrote."""
    pid, terminal = pty.fork()
    if pid == 0:  # pragma: no cover - the child
        os.chdir(ROOT)
        # A terminal of its own needs fork and exec.
        os.execvpe(command[0], command, {"PATH": os.environ["PATH"], "TERM": "xterm", "LANG": "C.UTF-8", **environment})  # noqa: S606
    text = b""
    while True:
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # EIO: the other side was closed
            break
        if not chunk:
            break
        text += chunk
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text.decode()


def kmodctl(bus: str, *arguments: str) -> list[str]:
    """The command line of kmodctl."""
    return [sys.executable, "-m", "kmodd.cli", "--bus", bus, *arguments]


def test_interrupted_while_waiting(fake: FakeDaemon, program: Program) -> None:
    fake.answers["Load", "slow"] = None
    with program("load", "slow") as process:
        wait_for(fake, "Load")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
    assert process.returncode == ExitCode.INTERRUPTED
    assert (out, err) == ("", "")


def test_a_reader_that_closes_the_pipe(fake: FakeDaemon, bus: str) -> None:
    fake.answers["ListModules", ""] = [{"name": f"module_{n}", "state": "available"} for n in range(20_000)]
    # An unbuffered standard output would swallow what a partial write left over, and with it the error.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        kmodctl(bus, "list"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == ExitCode.BROKEN_PIPE


def test_the_bus_starts_the_daemon(bus: str, tmp_path: Path, program: Program) -> None:
    """kmodctl only calls; activation is the bus's business and needs nothing of it."""
    services = Path(bus.removeprefix("unix:path=")).parent / "services"
    started = tmp_path / "started"
    service = services / "org.kmodd1.service"
    service.write_text(f"[D-BUS Service]\nName=org.kmodd1\nExec=/bin/sh -c 'touch {started}; exit 1'\n")
    try:
        deadline = time.monotonic() + 10
        while not started.exists():  # dbus-daemon notices new files by inotify, in its own time
            assert time.monotonic() < deadline
            with program("status") as process:
                _, err = process.communicate(timeout=10)
    finally:
        service.unlink()
    assert process.returncode == ExitCode.UNAVAILABLE
    assert "kmodd could not be started" in err


def test_monitor_tells_what_happens(fake: FakeDaemon, program: Program) -> None:
    with program("monitor") as process:
        wait_for(fake, "GetAll")
        fake.emit("ModuleAdded", "s", ["vfat"])
        fake.emit("JobFinished", "osss", ["/org/kmodd1/job/7", "load", "vfat", "InUse"])
        assert "module vfat is live" in read_line(process)
        assert "job 7: load vfat: InUse" in read_line(process)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == ExitCode.INTERRUPTED


def test_monitor_as_json_lines(fake: FakeDaemon, program: Program) -> None:
    with program("monitor", "--json") as process:
        wait_for(fake, "GetAll")
        fake.emit("ModuleRemoved", "s", ["vfat"])
        line = json.loads(read_line(process))
        process.send_signal(signal.SIGINT)
    assert (line["signal"], line["arguments"]) == ("ModuleRemoved", ["vfat"])


def test_log_follows_the_history(fake: FakeDaemon, program: Program) -> None:
    with program("log", "-f", "--json", "-n", "2") as process:
        assert json.loads(read_line(process))["module"] == "vfat"
        assert json.loads(read_line(process))["module"] == "i6300esb"
        later = {**samples.HISTORY[0], "time": samples.NOW, "module": "later"}
        fake.answers["GetHistory", ""] = lambda call: [later] if call.options["since"] <= samples.NOW else []
        fake.emit("ModuleAdded", "s", ["later"])
        assert json.loads(read_line(process))["module"] == "later"
        process.send_signal(signal.SIGINT)
    first, second = fake.asked("GetHistory")[:2]
    assert (first.options["limit"], second.options["limit"]) == (2, 1000)
    assert second.options["since"] == samples.HISTORY[1]["time"] + 1


def test_log_follows_signals_where_history_is_denied(fake: FakeDaemon, program: Program) -> None:
    fake.answers["GetHistory", ""] = DENIED
    with program("log", "-f", "vfat") as process:
        assert process.stderr is not None
        assert "showing only new records" in process.stderr.readline()
        fake.emit("ModuleAdded", "s", ["other"])
        fake.emit("ModuleAdded", "s", ["vfat"])
        assert "module vfat is live" in read_line(process)
        process.send_signal(signal.SIGINT)


def test_a_terminal_gets_colour_and_width(fake: FakeDaemon, bus: str) -> None:
    status, text = on_terminal(kmodctl(bus, "list", "--no-pager"), COLUMNS="60")
    assert status == 0
    assert "\x1b[1mMODULE" in text
    assert "5 modules" in text
    _, plain = on_terminal(kmodctl(bus, "list", "--no-pager"), NO_COLOR="1")
    assert "\x1b" not in plain


def test_long_output_goes_through_the_pager(fake: FakeDaemon, bus: str, tmp_path: Path) -> None:
    fake.answers["ListModules", ""] = [{"name": f"module_{n}", "state": "available"} for n in range(100)]
    pager = f"sh -c 'cat > {tmp_path}/paged'"
    status, text = on_terminal(kmodctl(bus, "list"), KMODD_PAGER=pager)
    assert (status, text) == (0, "")
    assert (tmp_path / "paged").read_text().count("module_") == 100
    for variables, arguments in (
        ({"KMODD_PAGER": pager}, ["--no-pager"]),
        ({"KMODD_PAGER": ""}, []),
        ({"PAGER": "cat"}, []),
    ):
        status, text = on_terminal(kmodctl(bus, "list", *arguments), **variables)
        assert text.count("module_") == 100
    _, text = on_terminal(kmodctl(bus, "list"), KMODD_PAGER="/nonexistent")
    assert text.count("module_") == 100


def test_a_locale_without_unicode_gets_ascii(fake: FakeDaemon, bus: str) -> None:
    environment = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PATH": os.environ["PATH"]}
    command = [sys.executable, "-m", "kmodd.cli", "--bus", bus, "why", "fat"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
    assert result.stdout.isascii()
    assert b"|- module" in result.stdout


def test_progress_of_a_batch_is_shown_on_a_terminal_and_wiped(fake: FakeDaemon, bus: str) -> None:
    def work(call: object) -> Later:
        fake.answers["GetAll", "/org/kmodd1/job/1"] = {"Sender": getattr(call, "sender", "")}
        fake._bus.send(_job_added())
        for progress in (0.5, 1.0):
            fake._bus.send(_job_progress(progress))
        return Later(0.5, [{"module": "vfat", "action": "load", "result": "changed", "changed": ["vfat"]}])

    fake.answers["Batch", ""] = work
    code = "import sys,time\nprint('load vfat')"
    batch = f'{sys.executable} -c "{code}" | {" ".join(kmodctl(bus, "batch", "-"))}'
    status, text = on_terminal(["sh", "-c", batch])
    assert status == 0
    assert "50%" in text
    assert "\x1b[K" in text
    assert text.rstrip().endswith("1 changed")


def test_a_password_is_requested_at_a_terminal_only(
    fake: FakeDaemon, bus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from argparse import Namespace

    from kmodd.cli.main import _Agent
    from tests.cli.runner import Terminal, screen

    def may_ask(*, forbidden: bool = False, terminal: bool = True, uid: int = 1000) -> bool:
        monkeypatch.setattr(os, "geteuid", lambda: uid)
        shown = screen()
        shown.stdin = Terminal() if terminal else shown.stdin
        return _Agent(Namespace(no_ask_password=forbidden, session=False, bus=None), shown).may_ask

    assert may_ask()
    assert not may_ask(forbidden=True)
    assert not may_ask(terminal=False)
    assert not may_ask(uid=0)


@pytest.mark.parametrize("session", [True, False])
def test_the_agent_is_waited_for_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, session: bool) -> None:
    monkeypatch.delenv("XDG_SESSION_ID", raising=False)
    if session:
        monkeypatch.setenv("XDG_SESSION_ID", "7")
    program = tmp_path / "agent"
    program.write_text(f'#!/bin/bash\necho "$@" > {tmp_path}/said\neval "exec ${{@: -1}}>&-"\nexec sleep 60\n')
    program.chmod(0o755)
    agent = TerminalAgent(str(program))
    agent.start()
    agent.start()
    said = (tmp_path / "said").read_text()
    assert said.startswith(f"--process {os.getpid()} {'--fallback ' if session else ''}--notify-fd ")
    process = agent._process
    assert process is not None
    agent.stop()
    assert process.returncode == -signal.SIGTERM
    agent.stop()


def test_without_the_agents_program_nothing_happens() -> None:
    agent = TerminalAgent("/nonexistent/agent")
    agent.start()
    agent.stop()


def test_help_does_not_load_the_bus_library() -> None:
    code = "import sys; sys.argv=['kmodctl','--help']\nfrom kmodd.cli.main import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "print([m for m in ('dbus_next','asyncio','subprocess','json') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (action,) = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    return dict(action.choices)


def _help(parser: argparse.ArgumentParser) -> list[str]:
    """Of the parser and of all below it."""
    below = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    return [parser.format_help(), *(text for each in below for inner in each.choices.values() for text in _help(inner))]


def test_a_command_is_the_same_where_the_others_are_not_defined() -> None:
    every = _commands(make_parser())
    for name, parser in every.items():
        few = _commands(make_parser(name))
        assert _help(few[name]) == _help(parser)
        assert len(few) < len(every) / 2, name
    assert _commands(make_parser("lst")).keys() == every.keys()


def test_the_help_of_a_token_lists_every_scope() -> None:
    create = _commands(_commands(make_parser())["token"])["create"]
    (scopes,) = [action.help or "" for action in create._actions if "--scope" in action.option_strings]
    assert scopes.partition(": ")[2].split(", ") == list(SCOPES)


def test_a_command_behind_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(["--bus", "list", "load", "dummy"]).verb == "load"
    with pytest.raises(SystemExit):
        parse(["--help", "list"])
    assert "reset-failed" in capsys.readouterr().out


def _job_added() -> object:
    from dbus_next import Message, Variant

    return Message.new_signal(
        "/org/kmodd1",
        OBJECTS,
        "InterfacesAdded",
        "oa{sa{sv}}",
        ["/org/kmodd1/job/1", {JOB: {"Sender": Variant("s", "")}}],
    )


def _job_progress(progress: float) -> object:
    from dbus_next import Message, Variant

    body = [JOB, {"Progress": Variant("d", progress)}, []]
    return Message.new_signal("/org/kmodd1/job/1", PROPERTIES, "PropertiesChanged", "sa{sv}as", body)
