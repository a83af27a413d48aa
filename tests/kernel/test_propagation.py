# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which copies of a mount an umount leaves: what is said beforehand, and what the kernel does then."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kmodd.kernel.users.propagation import MountTable
from kmodd.model import Remedy, User
from tests.kernel.usage_root import FakeRoot

ROOT = Path(__file__).resolve().parents[2]
SLAVE, PEER, PRIVATE = (["--propagation", each] for each in ("slave", "unchanged", "private"))
SCENARIOS: dict[str, tuple[list[str], str, list[str]]] = {
    "a slave": (SLAVE, "", []),
    "a peer": (PEER, "", []),
    "private": (PRIVATE, "", ["a/m"]),
    "as systemd makes it": (SLAVE, "mount --make-rshared /", []),
    "a slave of another user namespace": (["--user", "--map-root-user", *SLAVE], "", []),
    "private of another user namespace": (["--user", "--map-root-user", *PRIVATE], "", ["a/m"]),
    "with a folder of it mounted on it": (SLAVE, "mount --bind $M/state $M/state", ["a/m", "a/m/state"]),
    "with something else mounted on it": (SLAVE, "mount -t tmpfs x $M/state", ["a/m"]),
    "with something mounted at its own place": (SLAVE, "mount -t tmpfs x $M", []),
    "bound elsewhere": (SLAVE, "mount --bind $M $D/b", ["b"]),
    "below a folder with another mount on it": (SLAVE, "mount --bind $D/private $D/a", []),
    "private below such a folder": (PRIVATE, "mount --bind $D/private $D/a", ["a/m"]),
    "bound with the folder it is in": (SLAVE, "mount --rbind $D/a $D/a", []),
    "in a folder bound elsewhere with all in it": (SLAVE, "mount --rbind $D/a $D/b", []),
    "a slave below what became private": (SLAVE, "mount --make-private $D", ["a/m"]),
    "private below a slave": (SLAVE, "mount --make-private $M", []),
    "read-only, as ProtectSystem= makes it": (SLAVE, "mount -o remount,bind,ro $M", []),
    "another one mounted in its place": (SLAVE, "umount $M\nmount -t tmpfs the-original $M", []),
    "another one mounted elsewhere": (SLAVE, "mount -t tmpfs the-original $D/b", ["b"]),
    "two times a slave": (SLAVE, "mount --make-rshared /\nexec unshare --mount --propagation slave sh -c 'echo made; read _'", []),
}  # fmt: skip


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[str]]]:
    folder = tmp_path_factory.mktemp("mounts")
    scenarios = {name: [options, script] for name, (options, script, _) in SCENARIOS.items()}
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--mount-proc",
         sys.executable, "-m", "tests.kernel.mounts_guest", folder, json.dumps(scenarios)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answered: dict[str, dict[str, list[str]]] = json.loads(done.stdout)
    return answered


@pytest.mark.parametrize("name", SCENARIOS)
def test_copies_that_are_said_to_stay_are_those_that_the_kernel_leaves(
    name: str, answer: dict[str, dict[str, list[str]]]
) -> None:
    assert answer["left"][name] == sorted(SCENARIOS[name][2]), "what the kernel does"
    assert answer["said"][name] == answer["left"][name]


def test_a_copy_under_another_mount_is_known_to_be_out_of_reach(answer: dict[str, dict[str, list[str]]]) -> None:
    assert [name for name, covered in answer["covered"].items() if covered] == ["private below such a folder"]


def table(*places: tuple[int, int, str]) -> MountTable:
    """Of mounts with these numbers, on these others, at these folders."""
    made = MountTable()
    for number, below, point in ((20, 1, "/"), *places):
        made.add(f"{number} {below} 0:{number} / {point} rw - tmpfs none rw".encode())
    return made


@pytest.mark.parametrize(
    ("places", "covered"),
    [
        (((30, 20, "/a"), (31, 30, "/a/b")), set()),
        (((30, 20, "/a"), (31, 30, "/a")), {30}),
        (((30, 20, "/a/b"), (31, 20, "/a")), {30}),
        (((30, 20, "/a/b"), (31, 30, "/a/b/c"), (32, 20, "/a")), {30, 31}),
        (((30, 20, "/a/b"), (31, 20, "/a"), (32, 31, "/a/b")), {30}),
        (((30, 20, "/a"), (31, 20, "/a\\040b"), (32, 20, "/ab"), (33, 20, "/a-b")), set()),
        (((30, 20, "/a"), (31, 30, "/a/b"), (32, 30, "/a")), {30, 31}),
    ],
    ids=[
        "on it",
        "at its place",
        "above it",
        "above what it stands on",
        "on what hides another",
        "beside it",
        "all in it",
    ],
)
def test_what_another_mount_hides(places: tuple[tuple[int, int, str], ...], covered: set[int]) -> None:
    made = table(*places)
    assert {int(number) for number in made.numbers if made.is_covered(number)} == covered


def test_each_mount_beside_another_is_looked_at_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many mounts as one likes lie in one folder: to compare each with all others would take too long."""
    made, count, looked_at = table(*((100 + each, 20, f"/a{each}") for each in range(1000))), 0, MountTable.point

    def point(self: MountTable, number: bytes) -> bytes:
        nonlocal count
        count += 1
        return looked_at(self, number)

    monkeypatch.setattr(MountTable, "point", point)
    assert not any(made.is_covered(number) for number in made.numbers)
    assert count < 10 * len(made.numbers)


# As Linux 6.18 and 6.1 write it, without the mounts that do not matter.
SYSTEM = """\
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
66 27 0:40 / /srv/merged rw,relatime shared:22 - overlay o rw,lowerdir=/l,upperdir=/u,workdir=/w
"""
COPIED = """\
88 87 254:0 / / ro,relatime shared:90 master:1 - ext4 /dev/vda rw
89 88 0:40 / /srv/merged ro,relatime shared:91 master:22 - overlay o rw,lowerdir=/l,upperdir=/u,workdir=/w
91 88 254:0 /var/tmp /tmp rw,relatime shared:92 master:1 - ext4 /dev/vda rw
"""
PRIVATE_COPY = """\
88 87 254:0 / / ro,relatime - ext4 /dev/vda rw
89 88 0:40 / /srv/merged ro,relatime - overlay o rw,lowerdir=/l,upperdir=/u,workdir=/w
"""
SLAVE_OF_A_PRIVATE_ONE = PRIVATE_COPY.replace("/srv/merged ro,relatime -", "/srv/merged ro,relatime master:22 -")
WITH_A_FOLDER = COPIED + "92 89 0:40 /state /srv/merged/state rw shared:91 master:22 - overlay o rw,lowerdir=/l\n"
COVERED = PRIVATE_COPY + "90 88 254:0 /x /srv rw,relatime - ext4 /dev/vda rw\n"
NESTED = """\
188 187 254:0 / / ro,relatime master:90 - ext4 /dev/vda rw
189 188 0:40 / /srv/merged ro,relatime master:91 - overlay o rw,lowerdir=/l,upperdir=/u,workdir=/w
"""
SERVICE, CONNECTION = "/system.slice/a.service", "/system.slice/system-b.slice/b@3-812-0.service"


def users(root: FakeRoot, table: str, cgroup: str = "/user.slice/user-0.slice/session-1.scope") -> list[User]:
    """Of overlay, with this table in a namespace of root's beside the system's own."""
    root.process(1, "/sbin/init", mountinfo=SYSTEM, ns="mnt:[1]", user_ns="user:[1]")
    root.process(77, "/usr/bin/a", mountinfo=table, ns="mnt:[7]", user_ns="user:[1]", cgroup=cgroup)
    root.owners = {"mnt:[1]": "user:[1]", "mnt:[7]": "user:[1]"}
    original, *others = root.found("overlay")
    assert (original.name, original.remedy, original.pid) == ("/srv/merged", Remedy.UNMOUNT, None)
    return others


@pytest.fixture
def root(tmp_path: Path) -> FakeRoot:
    return FakeRoot(tmp_path)


def test_copy_of_a_sandboxed_service_that_goes_with_the_original_is_no_other_mount(root: FakeRoot) -> None:
    assert users(root, COPIED, SERVICE) == []


def test_copy_of_a_copy_goes_too(root: FakeRoot) -> None:
    root.process(99, "/usr/bin/b", mountinfo=NESTED, ns="mnt:[9]", user_ns="user:[1]")
    assert users(root, COPIED, SERVICE) == []


@pytest.mark.parametrize(
    ("table", "cgroup", "remedy", "target"),
    [
        (PRIVATE_COPY, SERVICE, Remedy.RESTART_UNIT, "a.service"),
        (SLAVE_OF_A_PRIVATE_ONE, SERVICE, Remedy.RESTART_UNIT, "a.service"),
        (PRIVATE_COPY, f"{SERVICE}/payload", Remedy.RESTART_UNIT, "a.service"),
        (COVERED, SERVICE, Remedy.RESTART_UNIT, "a.service"),
        (PRIVATE_COPY, CONNECTION, Remedy.STOP_UNIT, "b@3-812-0.service"),
        (PRIVATE_COPY, "/user.slice/user-0.slice/session-1.scope", Remedy.UNMOUNT, "/srv/merged"),
        (COVERED, "/user.slice/user-0.slice/session-1.scope", Remedy.KILL, ""),
    ],
    ids=["service", "slave", "delegated", "covered", "connection", "shell", "covered shell"],
)
def test_copy_that_an_umount_leaves_is_ended_where_it_is(
    root: FakeRoot, table: str, cgroup: str, remedy: Remedy, target: str
) -> None:
    (user,) = users(root, table, cgroup)
    assert (user.name, user.pid, user.remedy, user.target) == ("/srv/merged", 77, remedy, target)
    assert user.detail == "type overlay, source o, a copy in the mount namespace of pid 77"


def test_service_with_a_folder_of_the_mount_is_stopped_since_it_may_not_start_without_it(root: FakeRoot) -> None:
    found = users(root, WITH_A_FOLDER, SERVICE)
    assert [user.name for user in found] == ["/srv/merged/state", "/srv/merged"], "the upper one first"
    assert {(user.remedy, user.target) for user in found} == {(Remedy.STOP_UNIT, "a.service")}


def test_mounts_of_the_root_file_system_in_a_sandbox_are_not_listed(root: FakeRoot) -> None:
    root.process(1, "/sbin/init", mountinfo=SYSTEM.replace("254:0", "0:40", 1).replace("ext4", "overlay"), ns="mnt:[1]")
    root.process(77, "/usr/bin/a", mountinfo=PRIVATE_COPY, ns="mnt:[7]")
    assert {user.pid for user in root.found("overlay")} == {None}


def test_mount_that_is_made_in_a_namespace_is_unmounted_there(root: FakeRoot) -> None:
    (user,) = users(root, COPIED.replace("0:40 / /srv/merged", "0:41 / /mnt"), SERVICE)
    assert (user.remedy, user.target) == (Remedy.UNMOUNT, "/mnt")
    assert user.detail == "type overlay, source o, in the mount namespace of pid 77"


def test_service_of_which_a_stranger_is_in_the_namespace_is_not_restarted(root: FakeRoot) -> None:
    root.process(78, "/usr/bin/b", ns="mnt:[7]", cgroup="/user.slice/user-1000.slice/session-2.scope")
    (user,) = users(root, PRIVATE_COPY, SERVICE)
    assert (user.remedy, user.target) == (Remedy.UNMOUNT, "/srv/merged")
