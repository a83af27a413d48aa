# SPDX-License-Identifier: LGPL-2.1-or-later
"""A person at a terminal types a password: kmodctl, polkit's own agent and its helper, the real polkitd, PAM."""

import re
from collections.abc import Callable, Iterator

import pytest

from tests.system.client import records, soon
from tests.vm.channel import Command
from tests.vm.machine import Machine

PASSWORD = "correct-horse-7"  # noqa: S105 - of a machine that is thrown away
WRONG = "battery-staple-8"
WINDOW = (24, 100)


@pytest.fixture(autouse=True)
def _root_has_a_password(vm: Machine) -> Iterator[None]:
    """polkit's `auth_admin` asks for root's where nobody is an administrator."""
    vm.run(["chpasswd"], input=f"root:{PASSWORD}\n", check=True)
    yield
    vm.run("modprobe -r dummy; passwd -l root")


def loaded(vm: Machine) -> bool:
    return vm.run(["test", "-e", "/sys/module/dummy/initstate"]).code == 0


def logged_in(vm: Machine, command: str) -> Command:
    """alice's terminal in a session of hers, as login(1) makes it. It ends with the command, whose code it only prints."""
    started = vm.start(["login", "-p", "-f", "alice"], window=WINDOW)
    started.write(f"{command}; echo code=$?; exit\n".encode())
    return started


def outside(vm: Machine, command: str) -> Command:
    """alice's terminal without a session, as under a cron job's or a container's shell."""
    return vm.start(command, user="alice", window=WINDOW)


def hidden(vm: Machine) -> bool:
    """Whether the agent reads without echo by now; it prints the prompt before, and throws away what was typed till then."""
    terminal = "/dev/$(ps -o tty= -p $(pgrep -n pkttyagent))"
    return vm.run(f"stty -F {terminal} | grep -qw -- -echo").code == 0


def typed(vm: Machine, started: Command, password: str) -> tuple[int, str]:
    """What her terminal shows, and the exit code, when she types this at the prompt."""
    started.wait_for_output("Password:", 60)
    soon(lambda: hidden(vm), "the agent hides what is typed")
    started.write(f"{password}\n".encode())
    return ended(started)


def ended(started: Command) -> tuple[int, str]:
    """The command's exit code and what the terminal shows; login's own is 0."""
    result = started.wait(90)
    printed = re.search(r"^code=(\d+)", result.stdout, re.MULTILINE)
    return int(printed[1]) if printed else result.code, result.stdout


@pytest.mark.parametrize("terminal", [logged_in, outside])
def test_right_password_loads(vm: Machine, terminal: Callable[[Machine, str], Command]) -> None:
    reason = f"typed-{terminal.__name__}"
    code, shown = typed(vm, terminal(vm, f"kmodctl load dummy --reason {reason}"), PASSWORD)
    assert code == 0, shown
    assert "org.kmodd1.load" in shown, "the agent says what it is for"
    assert "inserted dummy" in shown
    assert loaded(vm)
    assert PASSWORD not in shown
    assert PASSWORD not in vm.journal()
    (record,) = soon(lambda: records(vm, f"KMODD_REASON={reason}", "KMODD_EVENT=module.loaded"), "its record")
    assert record["KMODD_UID"] == vm.check("id -u alice").strip()
    # pam_loginuid(8) sets it when she logs in; a terminal that no login made has none.
    assert record.get("KMODD_LOGINUID") == (record["KMODD_UID"] if terminal is logged_in else None)
    assert records(vm, "KMODD_EVENT=authorization.granted", "KMODD_MODULE=dummy", f"KMODD_UID={record['KMODD_UID']}")


def test_wrong_password_does_not(vm: Machine) -> None:
    code, shown = typed(vm, logged_in(vm, "kmodctl load dummy"), WRONG)
    assert code == 4, shown
    assert "AUTHENTICATION FAILED" in shown
    assert not loaded(vm)
    assert WRONG not in vm.journal()


def test_no_ask_password_does_not_prompt(vm: Machine) -> None:
    result = vm.start("kmodctl --no-ask-password load dummy", user="alice", window=WINDOW).wait(60)
    assert result.code == 4, result.stdout
    assert "Password:" not in result.stdout
    assert not loaded(vm)


def test_what_cannot_succeed_prompts_no_user(vm: Machine) -> None:
    result = vm.start("kmodctl load no_such_module", user="alice", window=WINDOW).wait(60)
    assert result.code == 3, result.stdout
    assert "Password:" not in result.stdout


def test_person_who_gives_up_at_the_prompt_leaves_nothing(vm: Machine) -> None:
    started = logged_in(vm, "kmodctl load dummy")
    started.wait_for_output("Password:", 60)
    started.write(b"\x03")  # Ctrl-C
    code, shown = ended(started)
    assert code != 0, shown
    assert not loaded(vm)
    soon(
        lambda: not vm.run(["pgrep", "-u", "alice", "-f", "pkttyagent|polkit-agent-helper"]).stdout, "no agent is left"
    )
    # The quota of prompts is free again: two may be open at once, and this is the third.
    for _ in range(2):
        again = logged_in(vm, "kmodctl load dummy")
        again.wait_for_output("Password:", 60)
        again.write(b"\x03")
        ended(again)


THRICE = """
import asyncio, sys
sys.path.insert(0, "LIBRARY")
from kmodd.cli.main import TerminalAgent
from kmodd.client import Client
from kmodd.errors import KmoddError

async def main():
    agent = TerminalAgent()
    async with await Client.connect() as client:
        agent.start()
        for module, interactive in (("dummy", True), ("loop", False), ("dummy", False)):
            client.interactive = interactive
            try:
                await client.load(module)
                print(f"{module}: loaded", flush=True)
            except KmoddError as error:
                print(f"{module}: {type(error).__name__}", flush=True)
    agent.stop()

asyncio.run(main())
"""


def test_a_password_typed_for_one_module_loads_no_other(vm: Machine) -> None:
    """polkit keeps nothing: neither for another module nor for the same one, from the process that had the password typed."""
    # One process asks three times over one connection: that is what a kept authorization would hold for.
    library = re.search(r'sys.path.insert\(0, "([^"]+)"', vm.check("cat $(which kmodctl)"))
    assert library is not None
    vm.write_file("/tmp/thrice.py", THRICE.replace("LIBRARY", library[1]))
    code, shown = typed(vm, logged_in(vm, "python3 /tmp/thrice.py"), PASSWORD)
    assert code == 0, shown
    assert re.findall(r"(dummy|loop): (loaded|\w+Required)", shown) == [
        ("dummy", "loaded"),
        ("loop", "InteractiveAuthorizationRequired"),
        ("dummy", "InteractiveAuthorizationRequired"),
    ], shown
    assert vm.run(["test", "-e", "/sys/module/loop/initstate"]).code != 0
