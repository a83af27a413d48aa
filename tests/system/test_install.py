# SPDX-License-Identifier: LGPL-2.1-or-later
"""`make install` and `make uninstall` on a real machine: it works at once, and nothing is left behind."""

from collections.abc import Iterator

import pytest

from tests.system.service import CALL, serves, show
from tests.vm import snapshot
from tests.vm.machine import Machine

# What the machine itself writes while it runs. Caches the package manager keeps belong to it, too.
LIVING = [
    "/proc",
    "/sys",
    "/dev",
    "/run",
    "/tmp",
    "/usr/src/kmodd",
    "/var/log",
    "/var/lib/systemd",
    "/var/cache",
    "/var/tmp",
]


@pytest.fixture
def machine() -> Iterator[Machine]:
    with snapshot.start_clean() as made:
        made.unpack(snapshot.installed_tree(), snapshot.SOURCE)
        yield made


def make(machine: Machine, *words: str) -> str:
    return machine.run(["make", "-C", snapshot.SOURCE, *words], timeout=300, check=True).stdout


def files(machine: Machine) -> set[str]:
    pruned = " -o ".join(f"-path {path}" for path in LIVING)
    return set(machine.check(f"find / \\( {pruned} \\) -prune -o -print", timeout=180).splitlines())


def test_nothing_is_left_behind(machine: Machine) -> None:
    before = files(machine)
    make(machine, "install")
    machine.run(["systemctl", "start", "kmodd.service"], timeout=90, check=True)
    machine.run(f"{CALL} Load 'sa{{ss}}a{{sv}}' dummy 0 0", check=True)
    assert files(machine) > before
    make(machine, "uninstall")
    assert sorted(files(machine) - before) == []
    assert sorted(before - files(machine)) == []
    assert machine.run("find /run -name '*kmodd*' -not -path '/run/udev/*' -not -name '*kmodd-vm*'").stdout == ""
    assert machine.run("systemctl list-units --all --no-legend 'kmodd*' | grep -v kmodd-vm").stdout == ""
    assert not serves(machine)
    assert "org.kmodd1" not in machine.check("pkaction")


def test_it_works_right_after_installing(machine: Machine) -> None:
    make(machine, "install")
    assert show(machine, "UnitFileState") == "enabled"
    assert show(machine, "ActiveState") == "inactive", "the administrator starts it"
    assert serves(machine), "or the first caller does"
    assert "org.kmodd1.load" in machine.check("pkaction")
    assert machine.check("kmodctl --version").strip().endswith("0.1.0")
    for page in ("kmodctl", "kmodd", "org.kmodd1"):
        assert machine.check(["man", "-w", page]).startswith("/usr/local/")


def test_installing_over_it_goes_on_with_the_new_code(machine: Machine) -> None:
    make(machine, "install")
    machine.run(["systemctl", "start", "kmodd.service"], timeout=90, check=True)
    before = show(machine, "MainPID")
    make(machine, "install")
    assert show(machine, "ActiveState") == "active"
    assert show(machine, "MainPID") != before
    assert serves(machine)


def test_prefix_of_a_package_works_too(machine: Machine) -> None:
    make(machine, "install", "PREFIX=/usr")
    machine.run(["systemctl", "start", "kmodd.service"], timeout=90, check=True)
    assert serves(machine)
    make(machine, "uninstall", "PREFIX=/usr")
    assert machine.run("ls /usr/lib/kmodd /usr/bin/kmodctl").code != 0


def test_missing_library_is_said_in_a_sentence(machine: Machine) -> None:
    machine.run("mv /usr/lib/python3/dist-packages/structlog /usr/lib/python3/dist-packages/away", check=True)
    answer = machine.run(["make", "-C", snapshot.SOURCE, "install"], timeout=120)
    assert answer.code != 0
    assert "python3-structlog" in answer.stderr
    assert "make install-deps" in answer.stderr
    assert machine.run(["test", "-e", "/usr/local/lib/kmodd"]).code != 0
