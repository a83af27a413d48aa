# SPDX-License-Identifier: LGPL-2.1-or-later
"""A person at a terminal types a password: kmodctl, polkit's own agent and its helper, the real polkitd, PAM."""

from collections.abc import Iterator

import pytest

from tests.system.client import records, soon
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


def typed(vm: Machine, command: str, password: str) -> tuple[int, str]:
    """What alice's terminal shows, and the exit code, when she types this at the prompt."""
    started = vm.start(command, user="alice", window=WINDOW)
    started.wait_for_output("Password:", 60)
    started.write(f"{password}\n".encode())
    result = started.wait(90)
    return result.code, result.stdout


def test_right_password_loads(vm: Machine) -> None:
    code, shown = typed(vm, "kmodctl load dummy --reason typed", PASSWORD)
    assert code == 0, shown
    assert "org.kmodd1.load" in shown, "the agent says what it is for"
    assert "inserted dummy" in shown
    assert loaded(vm)
    assert PASSWORD not in shown
    assert PASSWORD not in vm.journal()
    (record,) = soon(lambda: records(vm, "KMODD_REASON=typed"), "its record")
    assert (record["KMODD_EVENT"], record["KMODD_UID"]) == ("module.loaded", vm.check("id -u alice").strip())
    granted = records(vm, "KMODD_EVENT=authorization.granted", "POLKIT_ACTION=org.kmodd1.load")
    assert granted


def test_wrong_password_does_not(vm: Machine) -> None:
    code, shown = typed(vm, "kmodctl load dummy", WRONG)
    assert code == 4, shown
    assert "AUTHENTICATION FAILED" in shown
    assert not loaded(vm)
    assert WRONG not in vm.journal()


def test_nobody_is_asked_who_does_not_want_to_be(vm: Machine) -> None:
    result = vm.start("kmodctl --no-ask-password load dummy", user="alice", window=WINDOW).wait(60)
    assert result.code == 4, result.stdout
    assert "Password:" not in result.stdout
    assert not loaded(vm)


def test_nobody_is_asked_for_what_cannot_succeed(vm: Machine) -> None:
    result = vm.start("kmodctl load no_such_module", user="alice", window=WINDOW).wait(60)
    assert result.code == 3, result.stdout
    assert "Password:" not in result.stdout


def test_person_who_gives_up_at_the_prompt_leaves_nothing(vm: Machine) -> None:
    started = vm.start("kmodctl load dummy", user="alice", window=WINDOW)
    started.wait_for_output("Password:", 60)
    started.write(b"\x03")  # Ctrl-C
    assert started.wait(60).code != 0
    assert not loaded(vm)
    soon(
        lambda: not vm.run(["pgrep", "-u", "alice", "-f", "pkttyagent|polkit-agent-helper"]).stdout, "no agent is left"
    )
    # The quota of prompts is free again: two may be open at once, and this is the third.
    for _ in range(2):
        again = vm.start("kmodctl load dummy", user="alice", window=WINDOW)
        again.wait_for_output("Password:", 60)
        again.write(b"\x03")
        again.wait(60)
