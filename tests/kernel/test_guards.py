# SPDX-License-Identifier: LGPL-2.1-or-later
"""The settings that close routes to modules, and the modes of device nodes, below a root folder."""

from pathlib import Path

import pytest

from kmodd.kernel.modules.installed import InstalledIndexes
from kmodd.kernel.proc.guards import device_nodes, read_guards
from kmodd.model.surface import Gate, Guard
from tests.kernel.fakeroot import RELEASE, FakeModule, FakeRoot

OPEN = {
    Gate.MODULES_DISABLED: "0",
    Gate.MODPROBE: "/sbin/modprobe",
    Gate.USERNS_CLONE: "1",
    Gate.USER_NAMESPACES: "7824",
    Gate.NET_NAMESPACES: "7824",
    Gate.MOUNT_NAMESPACES: "7824",
    Gate.APPARMOR_USERNS: "0",
    Gate.LDISC_AUTOLOAD: "1",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A system on which nothing is closed."""
    for gate, value in OPEN.items():
        write(tmp_path, gate, value)
    program = tmp_path / "sbin/modprobe"
    program.parent.mkdir()
    program.touch(0o755)
    return tmp_path


def write(root: Path, gate: Gate, value: str) -> None:
    path = root / "proc/sys" / gate.value.replace(".", "/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{value}\n")


def guards(root: Path) -> dict[Gate, Guard]:
    return {guard.gate: guard for guard in read_guards(root)}


def test_nothing_is_closed_by_the_settings_of_a_stock_system(root: Path) -> None:
    assert {gate: guard.value for gate, guard in guards(root).items()} == OPEN
    assert not any(guard.closes or guard.unread for guard in guards(root).values())


@pytest.mark.parametrize(
    ("gate", "value"),
    [
        (Gate.MODULES_DISABLED, "1"),
        (Gate.MODPROBE, ""),
        (Gate.MODPROBE, "/bin/false"),
        (Gate.MODPROBE, "/no/such/program"),
        (Gate.USERNS_CLONE, "0"),
        (Gate.USER_NAMESPACES, "0"),
        (Gate.NET_NAMESPACES, "0"),
        (Gate.MOUNT_NAMESPACES, "0"),
        (Gate.APPARMOR_USERNS, "1"),
        (Gate.LDISC_AUTOLOAD, "0"),
    ],
)
def test_each_setting_closes(root: Path, gate: Gate, value: str) -> None:
    write(root, gate, value)
    assert [guard.gate for guard in guards(root).values() if guard.closes] == [gate]


def test_a_setting_that_the_kernel_does_not_have(root: Path) -> None:
    for gate in OPEN:
        (root / "proc/sys" / gate.value.replace(".", "/")).unlink()
    closed = {gate for gate, guard in guards(root).items() if guard.closes}
    # Without the limit there are no user namespaces; without kernel.modprobe no requests. The others are of some kernels only.
    assert closed == {Gate.MODPROBE, Gate.USER_NAMESPACES, Gate.NET_NAMESPACES, Gate.MOUNT_NAMESPACES}


def test_another_program_than_modprobe_counts_as_modprobe(root: Path) -> None:
    program = root / "usr/local/sbin/modprobe-log"
    program.parent.mkdir(parents=True)
    program.touch(0o755)
    write(root, Gate.MODPROBE, "/usr/local/sbin/modprobe-log")
    guard = guards(root)[Gate.MODPROBE]
    assert not guard.closes
    assert guard.unusual
    program.chmod(0o644)
    assert guards(root)[Gate.MODPROBE].closes


def test_a_program_in_a_directory_that_the_unit_hides_is_not_taken_for_missing(root: Path) -> None:
    write(root, Gate.MODPROBE, "/home/alice/modprobe")
    guard = guards(root)[Gate.MODPROBE]
    assert (guard.closes, guard.unusual) == (False, True)


def test_what_cannot_be_read_counts_as_open_and_says_so(root: Path) -> None:
    path = root / "proc/sys/dev/tty/ldisc_autoload"
    path.unlink()
    path.mkdir()  # read(2) answers EISDIR
    guard = guards(root)[Gate.LDISC_AUTOLOAD]
    assert (guard.closes, guard.unread) == (False, True)
    assert "cannot be read (EISDIR)" in guard.says


DEVNAME = (
    "# Device nodes to trigger on-demand module loading.\nmem null c1:3\ntun net/tun c10:200\nx ../x c1:3\nbad line\n"
)


def test_nodes_have_the_mode_that_they_have_now(root: Path) -> None:
    tree = root / "lib/modules" / RELEASE
    tree.mkdir(parents=True)
    (tree / "modules.devname").write_text(DEVNAME)
    (root / "etc").mkdir()
    (root / "etc/group").write_text("root:x:0:\nkvm:x:106:\n")
    status = Path("/dev/null").stat()
    null, tun = device_nodes(root, RELEASE, Path("/dev"))
    assert (null.path, null.module, null.request) == ("null", "mem", "char-major-1-3")
    assert (null.mode, null.group) == (status.st_mode & 0o7777, "root" if status.st_gid == 0 else str(status.st_gid))
    assert tun.request == "char-major-10-200"
    # A file in the place of the node is not the node.
    devices = root / "dev"
    (devices / "net").mkdir(parents=True)
    (devices / "net/tun").touch(0o666)
    assert [(node.mode, node.mode_known) for node in device_nodes(root, RELEASE, devices)] == [
        (None, True),
        (None, True),
    ]
    assert [(node.mode, node.mode_known) for node in device_nodes(root, RELEASE, None)] == [
        (None, False),
        (None, False),
    ]


def test_each_installed_kernel_has_its_own_index(tmp_path: Path) -> None:
    FakeRoot(tmp_path, [FakeModule("one", aliases=("fs-one",))]).build()
    installed = InstalledIndexes(tmp_path)
    assert installed.releases() == (RELEASE,)
    with installed.index(RELEASE) as index:
        assert list(index.available()) == ["one"]
    with installed.index("9.9.9") as index:
        assert list(index.available()) == []
    before = installed.stamp(RELEASE)
    assert installed.stamp(RELEASE) == before
    (tmp_path / "etc/modprobe.d").mkdir(parents=True, exist_ok=True)
    (tmp_path / "etc/modprobe.d/x.conf").write_text("blacklist one\n")
    assert installed.stamp(RELEASE) != before
