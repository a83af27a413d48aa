# SPDX-License-Identifier: LGPL-2.1-or-later
"""A person at a terminal is not asked for a password in vain: kmodctl on a real terminal, the real polkitd."""

from tests.vm.machine import Machine

WINDOW = (24, 100)


def loaded(vm: Machine) -> bool:
    return vm.run(["test", "-e", "/sys/module/dummy/initstate"]).code == 0


def test_nobody_is_asked_who_does_not_want_to_be(vm: Machine) -> None:
    result = vm.start("kmodctl --no-ask-password load dummy", user="alice", window=WINDOW).wait(60)
    assert result.code == 4, result.stdout
    assert "Password:" not in result.stdout
    assert not loaded(vm)


def test_nobody_is_asked_for_what_cannot_succeed(vm: Machine) -> None:
    result = vm.start("kmodctl load no_such_module", user="alice", window=WINDOW).wait(60)
    assert result.code == 3, result.stdout
    assert "Password:" not in result.stdout
