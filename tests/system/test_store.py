# SPDX-License-Identifier: LGPL-2.1-or-later
"""Custom modules with the real kernel, depmod and modprobe."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.client import Kmodctl
from tests.system.service import main_pid, show, wait_until
from tests.system.test_polkit import own_loads_alone
from tests.vm import rootfs
from tests.vm.machine import Machine

BROKEN = "/usr/lib/kmodd-test/broken"
FILES = "/root/files"
GOOD = "kmodd_test_good"
WISHES = "/etc/kmodd/modules.d/test.toml"
STORE = ("org.kmodd1", "/org/kmodd1", "org.kmodd1.Store")
SLOW = 180.0
"""Seconds; activating runs depmod over a thousand modules."""


@pytest.fixture(autouse=True, scope="module")
def _files(vm: Machine) -> None:
    """Take some test modules out of the module tree, so that nothing of their names is there."""
    vm.check(
        f"mkdir {FILES}; cd /lib/modules/$(uname -r)/updates/kmodd-test &&"
        f" mv {GOOD}.ko kmodd_test_xz.ko.xz kmodd_test_zst.ko.zst kmodd_test_dep_b.ko {FILES}/ && depmod -a",
        timeout=120,
    )


@pytest.fixture(autouse=True)
def _running(vm: Machine, kmodctl: Kmodctl) -> Iterator[None]:
    """Each test starts with a running service and an empty store, and leaves no traceback in the journal."""
    vm.run("systemctl reset-failed kmodd.service; systemctl start kmodd.service", timeout=90, check=True)
    for row in store(kmodctl, "list"):
        if row["active"]:
            store(kmodctl, "deactivate", row["name"], "--load", "--kernel", row["kernel"])
    for row in store(kmodctl, "list"):
        # One call removes a version for all kernels; what it says of the second is no matter here.
        kmodctl("store", "remove", row["name"], row["version"])
    yield
    assert "Traceback" not in vm.journal("-u", "kmodd*", "-g", "Traceback")


def store(kmodctl: Kmodctl, *arguments: str) -> Any:
    """kmodctl's document."""
    done = kmodctl("--json", "store", *arguments, seconds=SLOW)
    assert done.code == 0, done.out + done.err
    return json.loads(done.out)


def refused(kmodctl: Kmodctl, *arguments: str) -> str:
    """The sentence of a refusal, with its class."""
    done = kmodctl("--json", "store", *arguments, seconds=SLOW)
    assert done.code != 0
    return done.out + done.err


def findings(kmodctl: Kmodctl, name: str) -> list[str]:
    checks = json.loads(kmodctl("--json", "status").out)["health"]["checks"]
    return [check["message"] for check in checks if check["name"] == name]


def modinfo(vm: Machine, field: str, name: str = GOOD) -> str:
    return vm.run(["modinfo", "-F", field, name]).stdout.strip()


@pytest.mark.parametrize("file", [f"{GOOD}.ko", "kmodd_test_xz.ko.xz", "kmodd_test_zst.ko.zst"])
def test_a_module_is_imported_activated_and_removed(vm: Machine, kmodctl: Kmodctl, file: str) -> None:
    name = file.partition(".")[0]
    imported = store(kmodctl, "import", f"{FILES}/{file}")
    assert imported["name"] == name
    assert store(kmodctl, "import", f"{FILES}/{file}") == imported
    (row,) = store(kmodctl, "list")
    assert (row["kernel"], row["active"]) == (vm.check("uname -r").strip(), False)
    assert vm.run(["modinfo", name]).code != 0
    assert store(kmodctl, "activate", name, imported["version"], "--load")["reloaded"] == [name]
    assert modinfo(vm, "filename", name) == f"/lib/modules/{row['kernel']}/updates/kmodd/{name}.ko"
    assert vm.check(f"sha256sum < $(modinfo -n {name})").split()[0] == imported["sha256"]
    assert "store" in json.dumps(json.loads(kmodctl("--json", "show", name).out))
    assert "Conflict" in refused(kmodctl, "remove", name, imported["version"])
    assert store(kmodctl, "deactivate", name, "--load")["reloaded"] == [name]
    assert vm.run(["modinfo", name]).code != 0
    store(kmodctl, "remove", name, imported["version"])
    assert store(kmodctl, "list") == []
    assert vm.check("ls -A /var/lib/kmodd/store") == ""


def test_versions_are_switched_and_survive_a_reboot(vm: Machine, kmodctl: Kmodctl) -> None:
    store(kmodctl, "import", f"{FILES}/{GOOD}.ko", "--version", "1")
    # Built for another release, which symbol versions make up for.
    store(kmodctl, "import", f"{BROKEN}/kmodd_test_vermagic_release.ko", "--version", "2")
    assert store(kmodctl, "activate", GOOD, "1", "--load")["reloaded"] == [GOOD]
    assert store(kmodctl, "activate", GOOD, "1", "--load")["reloaded"] == []
    assert store(kmodctl, "activate", GOOD, "2", "--load")["reloaded"] == [GOOD]
    assert modinfo(vm, "vermagic").startswith("5.")
    assert store(kmodctl, "activate", GOOD, "1")["reloaded"] == []
    assert modinfo(vm, "vermagic").startswith("6.")
    vm.reboot()
    vm.run("systemctl stop kmodd.service", check=True)
    vm.check(["modprobe", GOOD])
    vm.run("systemctl start kmodd.service", check=True, timeout=90)
    assert [row["version"] for row in store(kmodctl, "list") if row["active"]] == ["1"]


def test_apply_brings_what_only_the_store_has(vm: Machine, kmodctl: Kmodctl) -> None:
    """No file of its name is in the tree before: what is wanted of it can be checked when its version is active, no sooner."""
    name = "kmodd_test_dep_b"
    store(kmodctl, "import", f"{FILES}/{name}.ko", "--version", "1")
    entry = f'[module.{name}]\nstate = "loaded"\nversion = "1"\nautoload = true\n'
    vm.write_file(WISHES, entry + '[module.kmodd_test_info]\nstate = "laoded"\n')
    try:
        assert kmodctl("config", "apply").code != 0
        vm.write_file(WISHES, entry)
        done = kmodctl("config", "apply", seconds=SLOW)
        assert done.code == 0, done.out + done.err
        assert "kmodd_test_dep_a and kmodd_test_dep_b" in done.out
        assert json.loads(kmodctl("--json", "config", "drift").out) == []
        assert vm.check(f"grep -c '^{name} \\|^kmodd_test_dep_a ' /proc/modules").strip() == "2"
        assert name in vm.check("cat /etc/modules-load.d/kmodd.conf")
        # A switch of versions is nothing that was interrupted, though it looks so from outside while it lasts.
        assert "could not be undone" not in vm.journal("-u", "kmodd", "-o", "cat")
    finally:
        vm.check(f"rm -f {WISHES}; rmmod {name} kmodd_test_dep_a", timeout=60)
        kmodctl("config", "autoload", name, "--off")


def test_a_version_is_in_force_whatever_else_lies_below_updates(vm: Machine, kmodctl: Kmodctl) -> None:
    """In either order of the folders, for everybody who runs depmod, and across a reboot's worth of it; and then it is not."""
    tree = f"/lib/modules/{vm.check('uname -r').strip()}"
    others = [f"updates/{folder}/{GOOD}.ko" for folder in ("a", "dkms", "zz")]
    vm.check(
        " && ".join(f"install -D {FILES}/{GOOD}.ko {tree}/{other}" for other in others) + " && depmod -a", timeout=60
    )
    lines = "/etc/depmod.d/kmodd.conf"
    ours = f"{tree}/updates/kmodd/{GOOD}.ko"
    try:
        assert modinfo(vm, "filename") in {f"{tree}/{other}" for other in others}
        store(kmodctl, "import", "--shadow", f"{BROKEN}/kmodd_test_vermagic_release.ko", "--version", "1")
        assert store(kmodctl, "activate", GOOD, "1", "--load")["reloaded"] == [GOOD]
        assert modinfo(vm, "filename") == ours
        assert vm.check(f"stat -c '%a %U' {lines}").strip() == "644 root"
        index = vm.check(f"cd {tree} && sha256sum modules.*")
        vm.check("depmod -a", timeout=60)
        assert vm.check(f"cd {tree} && sha256sum modules.*") == index, "it was what depmod -a makes"
        assert modinfo(vm, "filename") == ours
        assert findings(kmodctl, "store-index") == []
        # The administrator decides otherwise, behind kmodd's back.
        vm.write_file("/etc/depmod.d/z.conf", f"override {GOOD} * updates/zz\n")
        vm.check("depmod -a", timeout=60)
        (said,) = findings(kmodctl, "store-index")
        assert f"takes updates/zz/{GOOD}.ko" in said
        done = json.loads(refused(kmodctl, "activate", GOOD, "1"))
        assert done["error"].endswith("Conflict")
        assert "because of line 1 of /etc/depmod.d/z.conf" in done["message"]
        vm.check(done["message"].split("`")[1])
        store(kmodctl, "activate", GOOD, "1")
        assert modinfo(vm, "filename") == ours
        assert findings(kmodctl, "store-index") == []
        store(kmodctl, "deactivate", GOOD, "--load")
        assert modinfo(vm, "filename") in {f"{tree}/{other}" for other in others}
        assert vm.run(f"ls {lines}").code != 0
    finally:
        vm.check(
            f"rm -rf /etc/depmod.d/z.conf {tree}/updates/a {tree}/updates/dkms {tree}/updates/zz; rmmod {GOOD}; depmod -a",
            timeout=60,
        )


RULE = "/etc/polkit-1/rules.d/10-store.rules"


def test_polkit_sees_every_module_that_comes_with_a_version(vm: Machine, kmodctl: Kmodctl) -> None:
    """The version needs a module of the tree: consent for the version alone does not load that one too."""
    name = "kmodd_test_dep_b"
    sha256 = store(kmodctl, "import", f"{FILES}/{name}.ko", "--version", "1")["sha256"]
    activate = f"kmodctl --no-ask-password store activate {name} 1 --load"

    def allow(modules: str) -> None:
        vm.write_file(
            RULE,
            "polkit.addRule(function(action, subject) { if (subject.user === 'alice' && "
            f"action.id.indexOf('org.kmodd1.') === 0 && action.lookup('modules') === '{modules}' && "
            f"action.lookup('sha256') === '{sha256}') return polkit.Result.YES; }});",
        )
        vm.run("systemctl reset-failed polkit.service; systemctl restart polkit.service", timeout=60, check=True)

    try:
        allow(name)
        assert vm.run(activate, user="alice", timeout=SLOW).code == 4
        assert not [row for row in store(kmodctl, "list") if row["active"]]
        allow(f"kmodd_test_dep_a {name}")
        vm.run(activate, user="alice", timeout=SLOW, check=True)
        assert vm.check(f"grep -c '^{name} \\|^kmodd_test_dep_a ' /proc/modules").strip() == "2"
    finally:
        vm.run(f"rm -f {RULE}; rmmod {name} kmodd_test_dep_a; systemctl restart polkit.service", timeout=60)


def test_a_rule_about_who_loaded_holds_for_another_version(vm: Machine, kmodctl: Kmodctl) -> None:
    store(kmodctl, "import", f"{FILES}/{GOOD}.ko", "--version", "1")
    store(kmodctl, "import", f"{BROKEN}/kmodd_test_vermagic_release.ko", "--version", "2")
    store(kmodctl, "activate", GOOD, "1", "--load")
    activate = f"kmodctl --no-ask-password store activate {GOOD} 2 --load"

    def active() -> list[str]:
        return [row["version"] for row in store(kmodctl, "list") if row["active"]]

    try:
        own_loads_alone(vm, RULE)
        assert vm.run(activate, user="alice", timeout=SLOW).code == 4
        assert active() == ["1"]
        vm.check(f"kmodctl unload {GOOD}")
        vm.run(f"kmodctl --no-ask-password load {GOOD}", user="alice", timeout=SLOW, check=True)
        vm.run(activate, user="alice", timeout=SLOW, check=True)
        assert active() == ["2"]
    finally:
        vm.run(f"rm -f {RULE}; systemctl restart polkit.service", timeout=60)


@pytest.mark.parametrize("answer", ["NO", "AUTH_ADMIN"])
def test_an_import_that_polkit_refuses_leaves_nothing_but_its_record(
    vm: Machine, kmodctl: Kmodctl, answer: str
) -> None:
    """Whom polkit refuses in any case has no file unpacked or parsed; nobody has one written before it is granted."""
    vm.write_file(RULE, f"polkit.addRule(function(action) {{ return polkit.Result.{answer}; }});")
    vm.run("systemctl reset-failed polkit.service; systemctl restart polkit.service", timeout=60, check=True)
    alice = vm.check("id -u alice").strip()
    # Folders too: a file that came and went changes their times.
    look = "find /var/lib/kmodd/store /lib/modules /etc/depmod.d -printf '%p %s %T@ %C@\\n' | sort | sha256sum"
    parsers = "systemctl show --value -p NAccepted kmodd-parser.socket"
    command = f"kmodctl --no-ask-password store import {FILES}/{GOOD}.ko"
    try:
        vm.check(f"chmod 755 /root {FILES}; chmod 644 {FILES}/{GOOD}.ko")
        before = vm.check(look), vm.check(parsers)
        begin = vm.check("date +@%s.%N").strip()
        assert vm.run(command, user="alice", timeout=SLOW).code == 4
        assert vm.check(look) == before[0]
        if answer == "NO":
            assert vm.check(parsers) == before[1]
        denied = ("-o", "json", "KMODD_EVENT=authorization.denied", f"KMODD_UID={alice}", "--since", begin)
        wait_until(lambda: "import-module" in vm.journal(*denied), "a record")
        (record,) = [json.loads(line) for line in vm.journal(*denied).splitlines()]
        assert record["KMODD_ERROR"] in {"AccessDenied", "InteractiveAuthorizationRequired"}
        # And what this looks at does change where it is granted.
        store(kmodctl, "import", f"{FILES}/{GOOD}.ko")
        assert vm.check(look) != before[0]
        assert vm.check(parsers) != before[1]
    finally:
        vm.run(f"chmod 700 /root; rm -f {RULE}; systemctl restart polkit.service", timeout=60)


def test_bad_files_are_distinguished(vm: Machine, kmodctl: Kmodctl) -> None:
    for file, error in (
        ("dummy_truncated.ko", "truncated"),
        ("dummy_empty.ko", "empty"),
        ("dummy_not_elf.ko", "not an ELF file"),
        ("dummy_foreign_architecture.ko", "another architecture"),
        ("kmodd_test_vermagic_flags.ko", "other options"),
        ("dummy_unsigned.ko", "Shadows"),
    ):
        assert error in refused(kmodctl, "import", f"{BROKEN}/{file}"), file
    # It needs a symbol of a module that is there, and of which nothing says the checksum but that module itself.
    assert "dep_b" in store(kmodctl, "import", f"{FILES}/kmodd_test_dep_b.ko")["name"]
    vm.check("mv /lib/modules/$(uname -r)/updates/kmodd-test/kmodd_test_dep_a.ko /root/; depmod -a", timeout=60)
    store(kmodctl, "remove", "kmodd_test_dep_b", store(kmodctl, "list")[0]["version"])
    assert "UnknownSymbol" in refused(kmodctl, "import", f"{FILES}/kmodd_test_dep_b.ko")
    assert store(kmodctl, "list") == []


def test_a_version_that_does_not_load_leaves_the_former_one(vm: Machine, kmodctl: Kmodctl) -> None:
    store(kmodctl, "import", "--shadow", f"{BROKEN}/dummy_unsigned.ko", "--version", "1")
    store(kmodctl, "import", "--shadow", f"{BROKEN}/dummy_tampered_code.ko", "--version", "2")
    own = modinfo(vm, "filename", "dummy")
    assert "/kernel/" in own
    store(kmodctl, "activate", "dummy", "1", "--load")
    assert "BadSignature" in refused(kmodctl, "activate", "dummy", "2", "--load")
    assert [row["version"] for row in store(kmodctl, "list") if row["active"]] == ["1"]
    assert "/updates/kmodd/" in modinfo(vm, "filename", "dummy")
    assert vm.check("lsmod | grep ^dummy")
    assert modinfo(vm, "signer", "dummy") == ""
    assert store(kmodctl, "deactivate", "dummy", "--load")["reloaded"] == ["dummy"]
    assert modinfo(vm, "filename", "dummy") == own
    assert vm.check("lsmod | grep ^dummy")


def test_a_change_that_is_killed_is_undone(vm: Machine, kmodctl: Kmodctl) -> None:
    store(kmodctl, "import", f"{FILES}/{GOOD}.ko", "--version", "1")
    for delay in (0.2, 1.0, 3.0, 6.0):
        # busctl is on the bus at once, where kmodctl is not before the first two of these.
        call = vm.start(["busctl", "call", *STORE, "Activate", "ssa{sv}", GOOD, "1", "0"])
        vm.check(f"sleep {delay}; kill -9 {main_pid(vm)}")
        call.wait(60)
        wait_until(lambda: show(vm, "ActiveState") == "active", "kmodd is started again")
        wait_until(lambda: not vm.run("ls /var/lib/kmodd/store/*/*/changing").stdout, "the change is undone")
        (row,) = store(kmodctl, "list")
        assert (vm.run(["modinfo", GOOD]).code == 0) == row["active"]
        if row["active"]:
            store(kmodctl, "deactivate", GOOD)
    assert store(kmodctl, "activate", GOOD, "1")["reloaded"] == []
    assert vm.check("find /var/lib/kmodd/store -name '.*.new'") == ""


def test_health_tells_of_kernels_without_a_version_and_of_changed_files(vm: Machine, kmodctl: Kmodctl) -> None:
    store(kmodctl, "import", f"{FILES}/{GOOD}.ko", "--version", "1")
    store(kmodctl, "activate", GOOD, "1")
    assert not findings(kmodctl, "store-version-missing")
    vm.check("mkdir -p /lib/modules/6.99.0-test/kernel && touch /lib/modules/6.99.0-test/modules.dep")
    (said,) = findings(kmodctl, "store-version-missing")
    assert "6.99.0-test" in said
    assert GOOD in said
    vm.check("rm -r /lib/modules/6.99.0-test")
    vm.check(f"echo >> $(modinfo -n {GOOD})")
    assert len(findings(kmodctl, "store-file-changed")) == 1
    store(kmodctl, "activate", GOOD, "1")
    assert findings(kmodctl, "store-file-changed") == []


def test_a_full_disk_is_an_error_and_no_more(vm: Machine, kmodctl: Kmodctl) -> None:
    vm.check(
        "systemctl stop kmodd && mount -t tmpfs -o size=64k,mode=700 tmpfs /var/lib/kmodd/store && systemctl start kmodd; "
        "head -c 1M /dev/zero > /var/lib/kmodd/store/.full; df /var/lib/kmodd/store | grep -q 100%",
        timeout=90,
    )
    try:
        assert "no space left" in refused(kmodctl, "import", f"{FILES}/{GOOD}.ko")
        assert store(kmodctl, "list") == []
        assert vm.check("find /var/lib/kmodd/store -name '.*.new'") == ""
    finally:
        vm.check("systemctl stop kmodd && umount /var/lib/kmodd/store && systemctl start kmodd", timeout=90)


def test_a_fault_after_the_reload_brings_the_former_version_back(vm: Machine, kmodctl: Kmodctl) -> None:
    store(kmodctl, "import", f"{FILES}/{GOOD}.ko", "--version", "1")
    store(kmodctl, "import", f"{BROKEN}/kmodd_test_vermagic_release.ko", "--version", "2")
    store(kmodctl, "activate", GOOD, "1", "--load")
    reloads = ("-o", "cat", "KMODD_EVENT=module.reloaded")
    before = vm.journal(*reloads).count(GOOD)
    active = f"/var/lib/kmodd/store/{GOOD}/$(uname -r)/active"
    vm.check(f"chattr +i {active}")
    try:
        assert "Conflict" in refused(kmodctl, "activate", GOOD, "2", "--load")
    finally:
        vm.check(f"chattr -i {active}")
    assert [row["version"] for row in store(kmodctl, "list") if row["active"]] == ["1"]
    assert modinfo(vm, "vermagic").startswith("6.")
    assert vm.journal(*reloads).count(GOOD) == before + 2  # to the new version, and back
    assert vm.check(f"grep ^{GOOD} /proc/modules").split()[4] == "Live"
    assert store(kmodctl, "activate", GOOD, "2", "--load")["reloaded"] == [GOOD]


def test_a_read_only_module_tree_is_an_error_and_no_more(vm: Machine, kmodctl: Kmodctl) -> None:
    store(kmodctl, "import", f"{FILES}/{GOOD}.ko", "--version", "1")
    # In the daemon's own view: the unit has a mount of its own there, which a new one outside would not cover.
    remount = f"nsenter -m -t {main_pid(vm)} mount -o remount,bind"
    vm.check(f"{remount},ro /usr/lib/modules")
    try:
        said = refused(kmodctl, "activate", GOOD, "1", "--load")
        assert "Conflict" in said
        assert "read-only" in said
    finally:
        vm.check(f"{remount},rw /usr/lib/modules")
    assert [row["active"] for row in store(kmodctl, "list")] == [False]
    assert not vm.run("ls /var/lib/kmodd/store/*/*/changing").stdout
    assert store(kmodctl, "activate", GOOD, "1", "--load")["reloaded"] == [GOOD]


def test_a_dry_run_changes_nothing(vm: Machine, kmodctl: Kmodctl) -> None:
    look = "find /lib/modules /var/lib/kmodd/store -type f -printf '%p %T@ %s\\n' | sort | sha256sum"
    before = vm.check(look)
    store(kmodctl, "import", f"{FILES}/{GOOD}.ko", "--version", "1", "--dry-run")
    assert store(kmodctl, "list") == []
    assert "truncated" in refused(kmodctl, "import", f"{BROKEN}/dummy_truncated.ko", "--dry-run")
    assert vm.check(look) == before
    store(kmodctl, "import", f"{FILES}/{GOOD}.ko", "--version", "1")
    assert store(kmodctl, "activate", GOOD, "1", "--load", "--dry-run")["reloaded"] == [GOOD]
    assert [row["active"] for row in store(kmodctl, "list")] == [False]
    assert vm.run(["modinfo", GOOD]).code != 0
    store(kmodctl, "activate", GOOD, "1", "--load")
    assert store(kmodctl, "deactivate", GOOD, "--load", "--dry-run")["reloaded"] == [GOOD]
    assert "Conflict" in refused(kmodctl, "remove", GOOD, "1", "--dry-run")
    assert vm.check(f"lsmod | grep ^{GOOD}")


def test_a_second_kernel_has_its_own_versions(vm: Machine, kmodctl: Kmodctl) -> None:
    """Another installed kernel, with headers, and not running: checked against its own symbols, activated in its own tree."""
    release = vm.check("uname -r").strip()
    running = ".".join(release.split(".")[:2])
    newest = re.sub(r"\d+$", lambda minor: "9" * len(minor[0]), running)
    newer = release.replace(running, newest)
    tree = f"/lib/modules/{newer}"
    # The copy has the same modules, so this kernel's own Module.symvers is its.
    vm.check(f"cp -a /lib/modules/{release} {tree} && rm -f {tree}/build && mkdir {tree}/build", timeout=180)
    headers = rootfs.build() / "headers/usr/src" / f"linux-headers-{release}"
    vm.write_file(f"{tree}/build/Module.symvers", (headers / "Module.symvers").read_bytes())
    vm.check(f"rm -f {tree}/updates/kmodd-test/kmodd_test_dep_a.ko; depmod {newer}", timeout=180)
    for name in (GOOD, "kmodd_test_dep_b"):
        content = vm.read_file(f"{FILES}/{name}.ko")
        vm.write_file(
            f"{FILES}/newer/{name}.ko", content.replace(f"vermagic={running}.".encode(), f"vermagic={newest}.".encode())
        )
    try:
        store(kmodctl, "import", f"{FILES}/{GOOD}.ko", "--version", "1")
        store(kmodctl, "activate", GOOD, "1")
        (said,) = findings(kmodctl, "store-version-missing")
        assert newer in said
        assert GOOD in said
        said = refused(kmodctl, "import", f"{FILES}/newer/kmodd_test_dep_b.ko")
        assert "UnknownSymbol" in said
        assert newer in said
        assert "kmodd_test_dep_a_value" in said
        store(kmodctl, "import", f"{FILES}/newer/{GOOD}.ko", "--version", "1")
        assert {row["kernel"] for row in store(kmodctl, "list")} == {release, newer}
        (said,) = findings(kmodctl, "store-version-missing")
        assert "the store has one" in said
        index = vm.check(f"stat -c %Y.%i /lib/modules/{release}/modules.dep")
        assert store(kmodctl, "activate", GOOD, "1", "--kernel", newer, "--load")["reloaded"] == []
        assert vm.check(f"modinfo -k {newer} -n {GOOD}").strip() == f"{tree}/updates/kmodd/{GOOD}.ko"
        assert vm.check(f"modinfo -k {newer} -F vermagic {GOOD}").startswith(f"{newest}.")
        assert vm.check(f"stat -c %Y.%i /lib/modules/{release}/modules.dep") == index, (
            "the running kernel's is untouched"
        )
        assert not findings(kmodctl, "store-version-missing")
        store(kmodctl, "deactivate", GOOD, "--kernel", newer)
        assert vm.run(f"modinfo -k {newer} {GOOD}").code != 0
        assert modinfo(vm, "filename").startswith(f"/lib/modules/{release}/updates/kmodd/")
    finally:
        vm.check(f"rm -rf {tree}", timeout=120)


def test_what_is_no_file_is_refused_at_once(vm: Machine, kmodctl: Kmodctl) -> None:
    vm.check("mkfifo -m 600 /root/fifo")
    for path in ("/root", "/dev/zero"):
        assert "regular file" in refused(kmodctl, "import", path)
    assert "regular file" in vm.run("kmodctl store import /root/fifo", timeout=30).stderr


def test_unsigned_modules_under_lockdown(fresh_vm: Machine, tmp_path: Path) -> None:
    vm, kmodctl = fresh_vm, Kmodctl(fresh_vm)
    # One way, until the next boot, as lockdown=integrity on the command line is.
    vm.check("echo integrity > /sys/kernel/security/lockdown")
    said = refused(kmodctl, "import", "--shadow", f"{BROKEN}/dummy_unsigned.ko")
    assert "Lockdown" in said
    assert "mokutil --import" in said
    assert "store import --sign" in said
    # Signed with a key of one's own, by the kernel's own program: taken, and refused by the kernel until it knows the key.
    release = vm.check("uname -r").strip()
    kbuild = next((rootfs.build() / "headers/usr/lib").glob("linux-kbuild-*/scripts/sign-file"))
    vm.write_file(f"/usr/lib/{kbuild.parts[-3]}/scripts/sign-file", kbuild.read_bytes(), mode=0o755)
    subprocess.run(
        ["openssl", "req", "-new", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=ACME modules", "-keyout",
         tmp_path / "key.pem", "-out", tmp_path / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    for name in ("key.pem", "cert.pem"):
        vm.write_file(f"/root/{name}", (tmp_path / name).read_bytes(), mode=0o600)
    signing = ("--sign", "/root/key.pem", "/root/cert.pem")
    store(kmodctl, "import", "--shadow", "--version", "1", *signing, f"{BROKEN}/dummy_unsigned.ko")
    (row,) = store(kmodctl, "list")
    assert (row["signed"], row["signer"]) == (True, "ACME modules")
    said = refused(kmodctl, "activate", "dummy", "1", "--load")
    assert "Lockdown" in said
    assert "the key of its signer, 'ACME modules', is not trusted by the kernel" in said
    assert "it trusts 'Build time autogenerated kernel key'" in said
    assert "mokutil --import" in said
    assert [row["active"] for row in store(kmodctl, "list")] == [False]
    assert modinfo(vm, "filename", "dummy").startswith(f"/lib/modules/{release}/kernel/")
    vm.check(["modprobe", "dummy"])
