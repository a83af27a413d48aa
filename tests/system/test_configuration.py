# SPDX-License-Identifier: LGPL-2.1-or-later
"""kmodd's own files on a real machine: what others make of them, after a reboot and with kmodd away."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.system.service import main_pid
from tests.vm.machine import Machine

AUTOLOAD = "/etc/modules-load.d/kmodd.conf"
OPTIONS = "/etc/modprobe.d/kmodd-options.conf"
BLACKLIST = "/etc/modprobe.d/kmodd-blacklist.conf"
OURS = (AUTOLOAD, OPTIONS, BLACKLIST)
IN_THE_WAY, FORBIDDEN = 5, 11


@pytest.fixture(autouse=True)
def _nothing_left(vm: Machine) -> Iterator[None]:
    """Each test starts without files of ours, with kmodd running, and leaves no bug in the journal."""
    vm.run(f"rm -f {' '.join(OURS)}; systemctl start kmodd.service", check=True)
    yield
    vm.run(f"umount /etc/modprobe.d 2>/dev/null; rm -rf {' '.join(OURS)} /etc/modprobe.d/.kmodd*")
    assert "Traceback" not in vm.journal("-u", "kmodd*")


def config(vm: Machine, *words: str, code: int = 0) -> str:
    """Run `kmodctl config`; what it says."""
    ended = vm.run(["kmodctl", "config", *words], timeout=60)
    assert ended.code == code, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def shown(vm: Machine, module: str) -> list[dict[str, Any]]:
    """The rules about one module."""
    rows: list[dict[str, Any]] = json.loads(vm.check(["kmodctl", "--json", "config", "show", module]))
    return rows


def files(vm: Machine) -> list[str]:
    """Everything in the two folders, hidden files too."""
    return vm.check("find /etc/modprobe.d /etc/modules-load.d -mindepth 1 | sort").split()


def is_loaded(vm: Machine, module: str) -> bool:
    return vm.run(["test", "-d", f"/sys/module/{module}"]).code == 0


def test_undoing_leaves_no_trace(vm: Machine) -> None:
    before = files(vm)
    config(vm, "autoload", "loop", "max_part=3", "--reason", "for a test")
    config(vm, "blacklist", "kmodd-test-good", "--hard")
    assert sorted({*files(vm)} - {*before}) == sorted(OURS)
    assert vm.check(f"stat -c '%a %U %G' {' '.join(OURS)}").split("\n")[:3] == ["644 root root"] * 3
    config(vm, "autoload", "loop", "--off")
    config(vm, "options", "loop", "--off")
    config(vm, "blacklist", "kmodd_test_good", "--off")
    assert files(vm) == before


def test_modprobe_obeys(vm: Machine) -> None:
    config(vm, "options", "kmodd_test_params", "level=4", "--reason", "a\\")
    config(vm, "blacklist", "kmodd_test_good", "--hard")
    config(vm, "blacklist", "kmodd_test_info")
    told = vm.check("modprobe --showconfig")
    assert "options kmodd_test_params level=4\n" in told
    assert "install kmodd_test_good /bin/false\n" in told
    assert vm.run("modprobe kmodd_test_good").code != 0
    assert not is_loaded(vm, "kmodd_test_good")
    # A soft blacklist keeps out what is asked for by an alias, and nothing else.
    assert vm.run("modprobe -b kmodd_test_info; test -d /sys/module/kmodd_test_info").code != 0
    vm.check("modprobe kmodd_test_info && rmmod kmodd_test_info")
    vm.check("modprobe kmodd_test_params")
    assert vm.check("cat /sys/module/kmodd_test_params/parameters/level; rmmod kmodd_test_params").strip() == "4"
    # systemd's own options for dummy are read after ours.
    said = " ".join(config(vm, "options", "dummy", "numdummies=3", code=IN_THE_WAY).split())
    assert "/modprobe.d/systemd.conf, line" in said
    assert vm.run(f"grep dummy {OPTIONS}").code == 1
    # kmodd itself obeys as well.
    assert vm.run(["kmodctl", "load", "kmodd_test_good"]).code == 6
    (rule,) = [row for row in shown(vm, "kmodd_test_info") if row["kind"] == "blacklist"]
    assert (rule["file"], rule["ours"], rule["findings"][0]["kind"]) == (BLACKLIST, True, "loadable-by-name")


def test_a_hard_blacklist_holds_for_a_module_with_soft_dependencies(vm: Machine) -> None:
    # depmod's own file names soft dependencies of nfsd, for which modprobe ignores install lines.
    assert "softdep nfsd pre:" in vm.check('cat "/lib/modules/$(uname -r)/modules.softdep"')
    vm.check("echo 'install nfsd /bin/false' > /etc/modprobe.d/by-hand.conf")
    (rule,) = [row for row in shown(vm, "nfsd") if row["kind"] == "install"]
    assert rule["findings"][0]["kind"] == "not-in-effect"
    assert "insmod" in vm.check("modprobe -n -v nfsd")
    assert "ignores install lines" in " ".join(vm.run(["kmodctl", "load", "nfsd"]).stderr.split())
    vm.check("rm /etc/modprobe.d/by-hand.conf")
    config(vm, "blacklist", "nfsd", "--hard")
    vm.check("systemctl stop kmodd.service")
    assert vm.run("modprobe nfsd").code != 0
    assert vm.run("mount -t nfsd nfsd /mnt").code != 0
    assert not is_loaded(vm, "nfsd")
    vm.check("systemctl start kmodd.service")
    config(vm, "blacklist", "nfsd", "--off")


def test_all_of_it_holds_after_a_reboot_with_kmodd_away(fresh_vm: Machine) -> None:
    vm = fresh_vm
    config(vm, "autoload", "dummy")
    config(vm, "autoload", "kmodd_test_params", "level=4", "--reason", "for a test")
    config(vm, "blacklist", "loop", "--hard")
    vm.check("systemctl disable --now kmodd.service && systemctl mask kmodd.service")
    vm.reboot()
    assert main_pid(vm) == 0
    assert is_loaded(vm, "dummy")
    assert vm.check("cat /sys/module/kmodd_test_params/parameters/level").strip() == "4"
    assert vm.run("modprobe loop").code != 0
    assert not is_loaded(vm, "loop")
    vm.check("systemctl unmask kmodd.service && systemctl enable --now kmodd.service")
    config(vm, "autoload", "dummy", "--off")
    config(vm, "options", "kmodd_test_params", "--off")
    assert vm.check(f"grep -v '^#' {AUTOLOAD}").split() == ["kmodd_test_params"]
    assert vm.run(["test", "-e", OPTIONS]).code == 1


def test_an_edit_by_hand_is_shown_and_left_alone(vm: Machine) -> None:
    config(vm, "options", "kmodd_test_params", "level=4")
    vm.check(f"sed -i s/level=4/level=6/ {OPTIONS}")
    edited = vm.check(f"cat {OPTIONS}")
    said = config(vm, "options", "loop", "max_loop=4", code=IN_THE_WAY)
    assert f"{OPTIONS} was edited since kmodd wrote it" in " ".join(said.split())
    assert "+options kmodd_test_params level=6" in " ".join(said.split())
    assert vm.check(f"cat {OPTIONS}") == edited
    vm.check(f"sed -i s/level=6/level=4/ {OPTIONS}")
    config(vm, "options", "loop", "max_loop=4")


def test_a_foreign_file_is_not_touched(vm: Machine) -> None:
    vm.write_file(OPTIONS, "options dummy numdummies=1\n")
    assert "was not written by kmodd" in " ".join(config(vm, "options", "loop", "max_loop=4", code=IN_THE_WAY).split())
    assert vm.check(f"cat {OPTIONS}") == "options dummy numdummies=1\n"
    vm.check(f"rm {OPTIONS} && ln -s /etc/hostname {OPTIONS}")
    assert "is a symbolic link" in " ".join(config(vm, "options", "loop", "max_loop=4", code=IN_THE_WAY).split())
    assert vm.run(["test", "-L", OPTIONS]).code == 0


def test_a_read_only_folder_and_a_full_one(vm: Machine) -> None:
    config(vm, "blacklist", "kmodd_test_good")
    text = vm.check(f"cat {BLACKLIST}")
    # The daemon has its own view of the folders: seen by it as well, since mounts propagate into it.
    vm.check("mount -t tmpfs -o size=4k,nr_inodes=8 none /etc/modprobe.d")
    vm.check("head -c 4096 /dev/zero > /etc/modprobe.d/filler || true")
    assert "no space left" in " ".join(config(vm, "blacklist", "kmodd_test_good", code=FORBIDDEN).split())
    assert vm.check("ls -A /etc/modprobe.d").split() == ["filler"]
    vm.check("mount -o remount,ro /etc/modprobe.d")
    said = config(vm, "blacklist", "kmodd_test_good", code=FORBIDDEN)
    assert "/etc/modprobe.d is on a read-only file system" in " ".join(said.split())
    vm.check("umount /etc/modprobe.d")
    assert vm.check(f"cat {BLACKLIST}") == text


def test_killing_the_daemon_while_it_writes_loses_nothing(vm: Machine) -> None:
    """Each round kills it at another moment; the file is always one that kmodd wrote whole."""
    config(vm, "blacklist", "kmodd_test_good")
    for round_ in range(6):
        job = vm.start(["kmodctl", "config", "blacklist", f"m{round_}", "--reason", "x" * 900])
        vm.run(f"sleep 0.{round_ * 2:02d}; kill -9 $(systemctl show --value -p MainPID kmodd.service)")
        job.wait(60)
        vm.check(
            "for i in $(seq 100); do busctl --system call org.kmodd1 /org/kmodd1 org.freedesktop.DBus.Peer Ping && "
            "exit 0; sleep 0.3; done; exit 1",
            timeout=60,
        )
        vm.run(["systemctl", "reset-failed", "kmodd.service"])
        assert "blacklist kmodd_test_good" in vm.check(f"cat {BLACKLIST}")
        # An unfinished or edited file would be a conflict.
        config(vm, "blacklist", "kmodd_test_info")
        config(vm, "blacklist", "kmodd_test_info", "--off")
    assert [name for name in files(vm) if "/.kmodd" in name] == []


def test_what_is_wrong_with_the_rules_of_a_machine(vm: Machine) -> None:
    """Every kind of finding, beside what modprobe itself makes of the files."""
    made = {
        "/etc/modprobe.d/admin.conf": (
            "options kmodd_test_params levl=4\n"
            "blacklist kmodd_test_good\n"
            "install kmodd_test_info /bin/sh -c true\n"
            "softdep kmodd_test_soft pre: kmodd_test_dep_a\n"
            "options kmodd_test_params level=2\n"
        ),
        "/etc/modprobe.d/later.conf": "options kmodd_test_params level=6\n",
        "/run/modprobe.d/later.conf": "options kmodd_test_params level=8\n",
        "/usr/local/lib/modprobe.d/later.conf": "options kmodd_test_params level=6\n",
        "/etc/modules-load.d/admin.conf": "kmodd_test_nosuch\nkmodd_test_good\n",
    }
    try:
        for path, text in made.items():
            vm.write_file(path, text)
        rows: list[dict[str, Any]] = json.loads(vm.check("kmodctl --json config show"))
        found = {
            (row["file"], row["line"], finding["kind"]): finding["message"]
            for row in rows
            for finding in row["findings"]
        }
        admin = "/etc/modprobe.d/admin.conf"
        assert "did you mean level?" in found[admin, 1, "unknown-parameter"]
        assert "still loaded by its name" in found[admin, 2, "loadable-by-name"]
        assert "shell command as root" in found[admin, 3, "shell-command"]
        assert "/etc/modprobe.d/later.conf:1 gives level another value" in found[admin, 5, "overridden"]
        assert "/etc/modprobe.d/later.conf has the same name" in found["/run/modprobe.d/later.conf", 1, "shadowed"]
        assert "has the same rules" in found["/usr/local/lib/modprobe.d/later.conf", 1, "duplicate"]
        assert "no module kmodd_test_nosuch" in found["/etc/modules-load.d/admin.conf", 1, "missing-module"]
        assert "blacklisted" in {
            kind for file, line, kind in found if (file, line) == ("/etc/modules-load.d/admin.conf", 2)
        }
        # The first line about soft dependencies counts for modprobe; depmod's own file is read after ours.
        assert [file for file, _, kind in found if kind == "softdep-override" and file.endswith("modules.softdep")]
        (last,) = [row for row in rows if row["file"] == "/etc/modprobe.d/later.conf"]
        assert last["masks"] == ["/run/modprobe.d/later.conf", "/usr/local/lib/modprobe.d/later.conf"]
        shown = vm.check("modprobe --showconfig")
        assert "level=8" not in shown
        vm.check("modprobe kmodd_test_params; modprobe kmodd_test_soft")
        assert vm.check("cat /sys/module/kmodd_test_params/parameters/level").strip() == "6"
        assert is_loaded(vm, "kmodd_test_dep_a")
    finally:
        vm.run(f"rm -f {' '.join(made)}; modprobe -r kmodd_test_params kmodd_test_soft kmodd_test_dep_a; true")


def test_only_who_may_can_change_it_and_everyone_sees_it(vm: Machine) -> None:
    ended = vm.run(["kmodctl", "--no-ask-password", "config", "blacklist", "dummy"], user="alice", timeout=60)
    assert ended.code == 4
    assert vm.run(["test", "-e", BLACKLIST]).code != 0
    vm.write_file("/etc/modprobe.d/secret.conf", "options dummy numdummies=7\n")
    vm.check("chmod 600 /etc/modprobe.d/secret.conf")
    rows = json.loads(vm.run(["kmodctl", "--json", "config", "show", "dummy"], user="alice", timeout=60).stdout)
    vm.check("rm /etc/modprobe.d/secret.conf")
    (row,) = [row for row in rows if row["file"] == "/etc/modprobe.d/secret.conf"]
    assert "value" not in row


def test_the_journal_has_who_what_where_and_why(vm: Machine) -> None:
    config(vm, "blacklist", "kmodd_test_xz", "--reason", "not on this machine")
    lines = vm.check("journalctl -t kmodd -o json KMODD_EVENT=configuration.changed KMODD_MODULE=kmodd_test_xz").split(
        "\n"
    )
    record = json.loads(lines[0])
    assert record["KMODD_FILE"] == BLACKLIST
    assert record["KMODD_REASON"] == "not on this machine"
    assert record["KMODD_ACTION"] == "blacklist"
    assert record["KMODD_UID"] == "0"
    assert "kmodd wrote /etc/modprobe.d/kmodd-blacklist.conf" in vm.check(
        "journalctl -t kmodd -x KMODD_EVENT=configuration.changed KMODD_MODULE=kmodd_test_xz"
    )
