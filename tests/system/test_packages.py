# SPDX-License-Identifier: LGPL-2.1-or-later
"""Debian's packages under apt: the life of one installation on a real machine, in the order of these tests."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmodd import VERSION
from tests.architecture.installation import ROOT
from tests.system.service import main_pid, serves, show
from tests.system.test_install import files
from tests.vm import builder, cache, snapshot, suite
from tests.vm.machine import Machine
from tests.vm.progress import say

# apt unpacks and compiles, and the parser of AppArmor compiles six profiles, under emulation.
pytestmark = pytest.mark.timeout(1200)

# cockpit-kmodd needs Cockpit: tests/system/test_cockpit.py installs it.
PACKAGES = ("kmodd", "kmodd-gateway", "kmodd-notifier", "python3-kmodd")
BEFORE = "0.0.9"
"""A version before this tree's."""
SETTINGS = "[operations]\ntimeout = 44\n"
DPKG = ("/var/lib/dpkg/", "/var/lib/apt/")
# passwd(5) and its kind keep the version before: userdel writes it.
BACKUPS = {f"/etc/{name}-" for name in ("passwd", "shadow", "group", "gshadow", "subuid", "subgid")}


# debian/control's Build-Depends, and lintian. systemd.pc has a package of its own since Debian 13.
BUILD_PACKAGES = ("build-essential", "debhelper", "dh-apparmor", "dh-python", "pkgconf", "python3", "scdoc", "lintian")
SYSTEMD = {"bookworm": "systemd"}
BUILD = f"""
make -C /source deb DEBS=/out/now DEB_BUILD=/tmp/now
make -C /source deb DEBS=/out/before DEB_BUILD=/tmp/before DEB_VERSION={BEFORE}
# Of the user running this, root or not; the packages belong to root either way.
lintian --allow-root --fail-on none /out/now/*.changes > /out/lintian
"""


@pytest.fixture(scope="module")
def packages() -> Path:
    """A folder with this tree's packages in `now`, the same with a lower version in `before`, and what lintian says in `lintian`.

    Built by the suite's own debhelper, and read by its own lintian.
    """
    chosen = suite.chosen()
    sources = re.search(r"^PACKAGED = (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert sources

    def build(folder: Path) -> None:
        say("building Debian packages")
        inputs = {f"/source/{name}": ROOT / name for name in sources[1].split()}
        needed = [*BUILD_PACKAGES, SYSTEMD.get(chosen.name, "systemd-dev")]
        builder.run(needed, BUILD, inputs, folder / "built")

    debian = [path for path in sorted((ROOT / "debian").rglob("*")) if path.is_file()]
    key = cache.digest([snapshot.installed_tree(), BUILD, *debian])
    return cache.entry(chosen.kind("debs"), key, build, prune=True) / "built"


@pytest.fixture(scope="module")
def machine(packages: Path) -> Iterator[Machine]:
    """A machine with the packages in /srv and nothing of kmodd installed."""
    with snapshot.start_clean() as made:
        for name in ("now", "before"):
            made.copy_in(packages / name, f"/srv/{name}")
        made.copy_in(ROOT / "debian", "/srv/source/debian")
        yield made


@pytest.fixture(scope="module")
def clean(machine: Machine) -> tuple[set[str], set[str]]:
    """Files and accounts of the machine before the first installation."""
    return files(machine), users(machine)


def apt(machine: Machine, *words: str) -> str:
    """apt-get with these words; no question is asked, and maintainer scripts that fail fail the test."""
    command = ["apt-get", "-y", *(f"-oDpkg::Options::=--force-{option}" for option in ("confold", "unsafe-io")), *words]
    return machine.run(command, env={"DEBIAN_FRONTEND": "noninteractive"}, timeout=900, check=True).stdout


def path(machine: Machine, folder: str, name: str) -> str:
    """The file of a package in the machine."""
    return machine.check(f"ls /srv/{folder}/{name}_*_all.deb").strip()


def install(machine: Machine, folder: str, *names: str) -> None:
    apt(machine, "install", *(path(machine, folder, name) for name in names))


def version(machine: Machine, name: str) -> str:
    return machine.check(["dpkg-query", "-W", "-f", "${Version}", name])


def users(machine: Machine) -> set[str]:
    return set(machine.check("getent passwd; getent group").splitlines())


def profiles(machine: Machine) -> set[str]:
    """Profiles of kmodd that the kernel has loaded."""
    return set(machine.run("grep -ho '^kmodd[^ ]*' /sys/kernel/security/apparmor/profiles").stdout.split())


def catalog(machine: Machine) -> int:
    """Explanations of kmodd's records that journalctl knows."""
    return int(machine.run("journalctl --list-catalog 2>/dev/null | grep -c ' kmodd: '").stdout)


def test_lintian_of_the_suite_finds_neither_error_nor_warning(packages: Path) -> None:
    said = (packages / "lintian").read_text()
    assert [line for line in said.splitlines() if line.startswith(("E:", "W:"))] == []


def test_installation_starts_the_daemon_and_nothing_else(machine: Machine, clean: object) -> None:
    install(machine, "before", *PACKAGES)
    assert version(machine, "kmodd") == BEFORE
    assert (show(machine, "ActiveState"), show(machine, "UnitFileState")) == ("active", "enabled")
    assert serves(machine)
    assert "org.kmodd1.load" in machine.check("pkaction")
    assert catalog(machine) > 20
    assert machine.check(["man", "-w", "org.kmodd1"]).startswith("/usr/share/man/")
    if machine.run(["aa-enabled", "--quiet"]).code == 0:
        assert "kmodd-worker" in profiles(machine)
        assert machine.check(f"cat /proc/{main_pid(machine)}/attr/current").startswith("kmodd ")
    for unit in ("kmodd-gateway.service", "kmodd-gateway.socket", "kmodd-notifier.service"):
        assert (show(machine, "UnitFileState", unit), show(machine, "ActiveState", unit)) == ("disabled", "inactive")
    assert machine.run("systemctl --global is-enabled kmodd-desktop-notify.service").stdout.strip() == "disabled"


def test_upgrade_keeps_settings_and_what_runs(machine: Machine) -> None:
    machine.write_file("/etc/kmodd/kmodd.toml", SETTINGS)
    machine.write_file("/etc/kmodd/notify.toml", "")
    machine.check("kmodctl config autoload loop max_loop=4 && kmodctl token create web --scope read", timeout=300)
    machine.check("echo '# local' >> /etc/apparmor.d/local/kmodd", timeout=300)
    machine.check("systemctl enable --now kmodd-notifier.service && systemctl start kmodd-gateway", timeout=300)
    kept = (
        "/etc/kmodd/kmodd.toml",
        "/etc/kmodd/tokens",
        "/etc/modprobe.d/kmodd-options.conf",
        "/etc/apparmor.d/local/kmodd",
    )
    settings = {path: machine.read_file(path) for path in kept}
    running = {unit: show(machine, "MainPID", unit) for unit in ("kmodd", "kmodd-notifier", "kmodd-gateway")}
    install(machine, "now", *PACKAGES)
    assert version(machine, "kmodd-notifier") == version(machine, "kmodd") == VERSION
    for unit, pid in running.items():
        assert show(machine, "ActiveState", unit) == "active", unit
        assert show(machine, "MainPID", unit) not in {pid, "0"}, f"{unit} runs the old code"
    assert show(machine, "UnitFileState", "kmodd-notifier") == "enabled"
    assert show(machine, "UnitFileState", "kmodd-gateway") == "disabled"
    assert {path: machine.read_file(path) for path in kept} == settings
    user = machine.check(["ps", "-o", "user:20=", "-p", show(machine, "MainPID", "kmodd-notifier")])
    assert user.strip() == "kmodd-notifier"


@pytest.mark.parametrize("test", ["service", "client", "gateway"])
def test_smoke_tests_of_autopkgtest_pass(machine: Machine, test: str) -> None:
    done = machine.run([f"debian/tests/{test}"], cwd="/srv/source", timeout=400)
    assert done.code == 0, f"{done.stdout}{done.stderr}"


def test_what_was_stopped_or_disabled_stays_so(machine: Machine) -> None:
    """The scripts of an upgrade once more, without the copying and compiling that say nothing about it."""
    machine.check(
        "systemctl disable --now kmodd-notifier; systemctl stop kmodd-gateway.socket kmodd-gateway kmodd", timeout=300
    )
    for name in ("kmodd", "kmodd-gateway", "kmodd-notifier"):
        command = [f"/var/lib/dpkg/info/{name}.postinst", "configure", BEFORE]
        machine.run(command, env={"DPKG_MAINTSCRIPT_PACKAGE": name}, timeout=600, check=True)
    for unit, enabled in {"kmodd": "enabled", "kmodd-notifier": "disabled", "kmodd-gateway.socket": "enabled"}.items():
        assert (show(machine, "UnitFileState", unit), show(machine, "ActiveState", unit)) == (enabled, "inactive"), unit


def test_removal_keeps_settings(machine: Machine) -> None:
    machine.check("systemctl start kmodd kmodd-notifier kmodd-gateway.socket && kmodctl load dummy", timeout=300)
    apt(machine, "remove", *PACKAGES)
    assert machine.run("command -v kmodd kmodctl kmodd-gateway kmodd-notifier").stdout == ""
    # systemd remembers names of units that something mentions.
    left = machine.run(
        "systemctl list-units --all --no-legend --plain 'kmodd*' | grep -v 'kmodd-vm\\|not-found'"
    ).stdout
    assert left == ""
    assert machine.run("pgrep -f /usr/bin/kmodd").stdout == ""
    assert not serves(machine)
    assert profiles(machine) == set()
    assert machine.check("cat /etc/kmodd/kmodd.toml") == SETTINGS
    assert machine.run("ls /etc/kmodd/tokens /etc/modprobe.d/kmodd-options.conf").code == 0


def test_purge_leaves_nothing(machine: Machine, clean: tuple[set[str], set[str]]) -> None:
    # Of an administrator, although it has a name like kmodd's own.
    machine.write_file("/etc/modprobe.d/kmodd-local.conf", "options dummy numdummies=0\n")
    folder = machine.check("echo /lib/modules/$(uname -r)/updates/kmodd").strip()
    machine.write_file(f"{folder}/special.ko", "active")
    # A library without settings is forgotten as soon as it is removed.
    apt(machine, "purge", *(name for name in PACKAGES if name != "python3-kmodd"))
    machine.check("rm /etc/modprobe.d/kmodd-local.conf", timeout=300)
    before, accounts = clean
    after = files(machine)
    assert sorted(name for name in after - before - BACKUPS if not name.startswith(DPKG)) == []
    # An empty folder of AppArmor's, which the script of dh_apparmor removes (autoscripts/postrm-apparmor of debhelper 13).
    assert before - after <= {"/etc/apparmor.d/disable"}
    assert users(machine) == accounts
    assert catalog(machine) == 0
    assert profiles(machine) == set()
    assert "org.kmodd1" not in machine.check("pkaction")
    assert machine.run("find /run -name '*kmodd*' -not -path '/run/udev/*' -not -name '*kmodd-vm*'").stdout == ""
    assert machine.run("systemctl list-unit-files --no-legend 'kmodd*' | grep -v kmodd-vm").stdout == ""
