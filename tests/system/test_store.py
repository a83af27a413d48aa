# SPDX-License-Identifier: LGPL-2.1-or-later
"""Custom modules with the real kernel, depmod and modprobe."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.service import main_pid, show, wait_until
from tests.vm import rootfs
from tests.vm.machine import Machine

BROKEN = "/usr/lib/kmodd-test/broken"
FILES = "/root/files"
GOOD = "kmodd_test_good"


@pytest.fixture(autouse=True, scope="module")
def _files(vm: Machine) -> None:
    """Take some test modules out of the module tree, so that nothing of their names is there."""
    vm.check(
        f"mkdir {FILES}; cd /lib/modules/$(uname -r)/updates/kmodd-test &&"
        f" mv {GOOD}.ko kmodd_test_xz.ko.xz kmodd_test_zst.ko.zst kmodd_test_dep_b.ko {FILES}/ && depmod -a",
        timeout=120,
    )


@pytest.fixture(autouse=True)
def _running(vm: Machine) -> Iterator[None]:
    """Each test starts with a running service and an empty store, and leaves no traceback in the journal."""
    vm.run("systemctl reset-failed kmodd.service; systemctl start kmodd.service", timeout=90, check=True)
    for row in store(vm, "list"):
        if row["active"]:
            store(vm, "deactivate", row["name"], "--load", "--kernel", row["kernel"])
    for row in store(vm, "list"):
        vm.run(["kmodctl", "store", "remove", row["name"], row["version"]], timeout=60)
    yield
    assert "Traceback" not in vm.journal("-u", "kmodd*")


def store(vm: Machine, *arguments: str, code: int = 0) -> Any:
    """kmodctl's document."""
    done = vm.run(["kmodctl", "--json", "store", *arguments], timeout=180)
    assert done.code == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def refused(vm: Machine, *arguments: str) -> str:
    """The sentence of a refusal, with its class."""
    done = vm.run(["kmodctl", "--json", "store", *arguments], timeout=180)
    assert done.code != 0
    return done.stdout + done.stderr


def findings(vm: Machine, name: str) -> list[str]:
    checks = json.loads(vm.check(["kmodctl", "--json", "status"]))["health"]["checks"]
    return [check["message"] for check in checks if check["name"] == name]


def modinfo(vm: Machine, field: str, name: str = GOOD) -> str:
    return vm.run(["modinfo", "-F", field, name]).stdout.strip()


@pytest.mark.parametrize("file", [f"{GOOD}.ko", "kmodd_test_xz.ko.xz", "kmodd_test_zst.ko.zst"])
def test_a_module_is_imported_activated_and_removed(vm: Machine, file: str) -> None:
    name = file.partition(".")[0]
    imported = store(vm, "import", f"{FILES}/{file}")
    assert imported["name"] == name
    assert store(vm, "import", f"{FILES}/{file}") == imported
    (row,) = store(vm, "list")
    assert (row["kernel"], row["active"]) == (vm.check("uname -r").strip(), False)
    assert vm.run(["modinfo", name]).code != 0
    assert store(vm, "activate", name, imported["version"], "--load")["reloaded"] == [name]
    assert modinfo(vm, "filename", name) == f"/lib/modules/{row['kernel']}/updates/kmodd/{name}.ko"
    assert vm.check(f"sha256sum < $(modinfo -n {name})").split()[0] == imported["sha256"]
    shown = json.loads(vm.check(["kmodctl", "--json", "show", name]))
    assert "store" in json.dumps(shown)
    assert "Conflict" in refused(vm, "remove", name, imported["version"])
    assert store(vm, "deactivate", name, "--load")["reloaded"] == [name]
    assert vm.run(["modinfo", name]).code != 0
    store(vm, "remove", name, imported["version"])
    assert store(vm, "list") == []
    assert vm.check("ls -A /var/lib/kmodd/store").split() == ["spool"]


def test_versions_are_switched_and_survive_a_reboot(vm: Machine) -> None:
    store(vm, "import", f"{FILES}/{GOOD}.ko", "--version", "1")
    # Built for another release, which symbol versions make up for.
    store(vm, "import", f"{BROKEN}/kmodd_test_vermagic_release.ko", "--version", "2")
    assert store(vm, "activate", GOOD, "1", "--load")["reloaded"] == [GOOD]
    assert store(vm, "activate", GOOD, "1", "--load")["reloaded"] == []
    assert store(vm, "activate", GOOD, "2", "--load")["reloaded"] == [GOOD]
    assert modinfo(vm, "vermagic").startswith("5.")
    assert store(vm, "activate", GOOD, "1")["reloaded"] == []
    assert modinfo(vm, "vermagic").startswith("6.")
    vm.reboot()
    vm.run("systemctl stop kmodd.service", check=True)
    vm.check(["modprobe", GOOD])
    vm.run("systemctl start kmodd.service", check=True, timeout=90)
    assert [row["version"] for row in store(vm, "list") if row["active"]] == ["1"]


def test_bad_files_are_told_apart(vm: Machine) -> None:
    for file, error in (
        ("dummy_truncated.ko", "truncated"),
        ("dummy_empty.ko", "empty"),
        ("dummy_not_elf.ko", "not an ELF file"),
        ("dummy_foreign_architecture.ko", "another architecture"),
        ("kmodd_test_vermagic_flags.ko", "other options"),
        ("dummy_unsigned.ko", "Shadows"),
    ):
        assert error in refused(vm, "import", f"{BROKEN}/{file}"), file
    # It needs a symbol of a module that is there, and of which nothing says the checksum but that module itself.
    assert "dep_b" in store(vm, "import", f"{FILES}/kmodd_test_dep_b.ko")["name"]
    vm.check("mv /lib/modules/$(uname -r)/updates/kmodd-test/kmodd_test_dep_a.ko /root/; depmod -a", timeout=60)
    store(vm, "remove", "kmodd_test_dep_b", store(vm, "list")[0]["version"])
    assert "UnknownSymbol" in refused(vm, "import", f"{FILES}/kmodd_test_dep_b.ko")
    assert store(vm, "list") == []


def test_a_version_that_does_not_load_leaves_the_former_one(vm: Machine) -> None:
    store(vm, "import", "--shadow", f"{BROKEN}/dummy_unsigned.ko", "--version", "1")
    store(vm, "import", "--shadow", f"{BROKEN}/dummy_tampered_code.ko", "--version", "2")
    own = modinfo(vm, "filename", "dummy")
    assert "/kernel/" in own
    store(vm, "activate", "dummy", "1", "--load")
    assert "BadSignature" in refused(vm, "activate", "dummy", "2", "--load")
    assert [row["version"] for row in store(vm, "list") if row["active"]] == ["1"]
    assert "/updates/kmodd/" in modinfo(vm, "filename", "dummy")
    assert vm.check("lsmod | grep ^dummy")
    assert modinfo(vm, "signer", "dummy") == ""
    assert store(vm, "deactivate", "dummy", "--load")["reloaded"] == ["dummy"]
    assert modinfo(vm, "filename", "dummy") == own
    assert vm.check("lsmod | grep ^dummy")


def test_a_change_that_is_killed_is_undone(vm: Machine) -> None:
    store(vm, "import", f"{FILES}/{GOOD}.ko", "--version", "1")
    for delay in (0.2, 1.0, 3.0, 6.0):
        call = vm.start(["kmodctl", "store", "activate", GOOD, "1"])
        vm.check(f"sleep {delay}; kill -9 {main_pid(vm)}")
        call.wait(60)
        wait_until(lambda: show(vm, "ActiveState") == "active", "kmodd is started again")
        wait_until(lambda: not vm.run("ls /var/lib/kmodd/store/*/*/changing").stdout, "the change is undone")
        (row,) = store(vm, "list")
        assert (vm.run(["modinfo", GOOD]).code == 0) == row["active"]
        if row["active"]:
            store(vm, "deactivate", GOOD)
    assert store(vm, "activate", GOOD, "1")["reloaded"] == []
    assert vm.check("ls -A /var/lib/kmodd/store/spool") == ""


def test_health_tells_of_kernels_without_a_version_and_of_changed_files(vm: Machine) -> None:
    store(vm, "import", f"{FILES}/{GOOD}.ko", "--version", "1")
    store(vm, "activate", GOOD, "1")
    assert not findings(vm, "store-version-missing")
    vm.check("mkdir -p /lib/modules/6.99.0-test/kernel && touch /lib/modules/6.99.0-test/modules.dep")
    (said,) = findings(vm, "store-version-missing")
    assert "6.99.0-test" in said
    assert GOOD in said
    vm.check("rm -r /lib/modules/6.99.0-test")
    vm.check(f"echo >> $(modinfo -n {GOOD})")
    wait_until(lambda: len(findings(vm, "store-file-changed")) == 1, "the changed file is found")
    store(vm, "activate", GOOD, "1")
    wait_until(lambda: not findings(vm, "store-file-changed"), "activating again puts the file right")


def test_a_full_disk_is_an_error_and_no_more(vm: Machine) -> None:
    vm.check(
        "systemctl stop kmodd && mount -t tmpfs -o size=64k,mode=700 tmpfs /var/lib/kmodd/store && systemctl start kmodd; "
        "head -c 1M /dev/zero > /var/lib/kmodd/store/.full; df /var/lib/kmodd/store | grep -q 100%",
        timeout=90,
    )
    try:
        assert "no room left" in refused(vm, "import", f"{FILES}/{GOOD}.ko")
        assert store(vm, "list") == []
        assert vm.check("ls -A /var/lib/kmodd/store/spool") == ""
    finally:
        vm.check("systemctl stop kmodd && umount /var/lib/kmodd/store && systemctl start kmodd", timeout=90)


def test_a_fault_after_the_reload_brings_the_former_version_back(vm: Machine) -> None:
    store(vm, "import", f"{FILES}/{GOOD}.ko", "--version", "1")
    store(vm, "import", f"{BROKEN}/kmodd_test_vermagic_release.ko", "--version", "2")
    store(vm, "activate", GOOD, "1", "--load")
    reloads = ("-o", "cat", "KMODD_EVENT=module.reloaded")
    before = vm.journal(*reloads).count(GOOD)
    active = f"/var/lib/kmodd/store/{GOOD}/$(uname -r)/active"
    vm.check(f"chattr +i {active}")
    try:
        assert "Conflict" in refused(vm, "activate", GOOD, "2", "--load")
    finally:
        vm.check(f"chattr -i {active}")
    assert [row["version"] for row in store(vm, "list") if row["active"]] == ["1"]
    assert modinfo(vm, "vermagic").startswith("6.")
    assert vm.journal(*reloads).count(GOOD) == before + 2  # to the new version, and back
    assert vm.check(f"grep ^{GOOD} /proc/modules").split()[4] == "Live"
    assert store(vm, "activate", GOOD, "2", "--load")["reloaded"] == [GOOD]


def test_a_read_only_module_tree_is_an_error_and_no_more(vm: Machine) -> None:
    store(vm, "import", f"{FILES}/{GOOD}.ko", "--version", "1")
    # In the daemon's own view: the unit has a mount of its own there, which a new one outside would not cover.
    remount = f"nsenter -m -t {main_pid(vm)} mount -o remount,bind"
    vm.check(f"{remount},ro /usr/lib/modules")
    try:
        said = refused(vm, "activate", GOOD, "1", "--load")
        assert "Conflict" in said
        assert "read-only" in said
    finally:
        vm.check(f"{remount},rw /usr/lib/modules")
    assert [row["active"] for row in store(vm, "list")] == [False]
    assert not vm.run("ls /var/lib/kmodd/store/*/*/changing").stdout
    assert store(vm, "activate", GOOD, "1", "--load")["reloaded"] == [GOOD]


def test_a_dry_run_changes_nothing(vm: Machine) -> None:
    look = "find /lib/modules /var/lib/kmodd/store -type f -printf '%p %T@ %s\\n' | sort | sha256sum"
    before = vm.check(look)
    store(vm, "import", f"{FILES}/{GOOD}.ko", "--version", "1", "--dry-run")
    assert store(vm, "list") == []
    assert "truncated" in refused(vm, "import", f"{BROKEN}/dummy_truncated.ko", "--dry-run")
    assert vm.check(look) == before
    store(vm, "import", f"{FILES}/{GOOD}.ko", "--version", "1")
    assert store(vm, "activate", GOOD, "1", "--load", "--dry-run")["reloaded"] == [GOOD]
    assert [row["active"] for row in store(vm, "list")] == [False]
    assert vm.run(["modinfo", GOOD]).code != 0
    store(vm, "activate", GOOD, "1", "--load")
    assert store(vm, "deactivate", GOOD, "--load", "--dry-run")["reloaded"] == [GOOD]
    assert "Conflict" in refused(vm, "remove", GOOD, "1", "--dry-run")
    assert vm.check(f"lsmod | grep ^{GOOD}")


def test_a_second_kernel_has_its_own_versions(vm: Machine) -> None:
    """Another installed kernel, with headers, and not running: checked against its own symbols, activated in its own tree."""
    release = vm.check("uname -r").strip()
    newer = release.replace("6.1.", "6.9.")
    tree = f"/lib/modules/{newer}"
    # The copy has the same modules, so this kernel's own Module.symvers is its.
    vm.check(f"cp -a /lib/modules/{release} {tree} && rm -f {tree}/build && mkdir {tree}/build", timeout=180)
    headers = rootfs.build() / "headers/usr/src" / f"linux-headers-{release}"
    vm.write_file(f"{tree}/build/Module.symvers", (headers / "Module.symvers").read_bytes())
    vm.check(f"rm -f {tree}/updates/kmodd-test/kmodd_test_dep_a.ko; depmod {newer}", timeout=180)
    for name in (GOOD, "kmodd_test_dep_b"):
        content = vm.read_file(f"{FILES}/{name}.ko")
        vm.write_file(f"{FILES}/newer/{name}.ko", content.replace(b"vermagic=6.1.", b"vermagic=6.9."))
    try:
        store(vm, "import", f"{FILES}/{GOOD}.ko", "--version", "1")
        store(vm, "activate", GOOD, "1")
        (said,) = findings(vm, "store-version-missing")
        assert newer in said
        assert GOOD in said
        said = refused(vm, "import", f"{FILES}/newer/kmodd_test_dep_b.ko")
        assert "UnknownSymbol" in said
        assert newer in said
        assert "kmodd_test_dep_a_value" in said
        store(vm, "import", f"{FILES}/newer/{GOOD}.ko", "--version", "1")
        assert {row["kernel"] for row in store(vm, "list")} == {release, newer}
        (said,) = findings(vm, "store-version-missing")
        assert "one is in the store" in said
        index = vm.check(f"stat -c %Y.%i /lib/modules/{release}/modules.dep")
        assert store(vm, "activate", GOOD, "1", "--kernel", newer, "--load")["reloaded"] == []
        assert vm.check(f"modinfo -k {newer} -n {GOOD}").strip() == f"{tree}/updates/kmodd/{GOOD}.ko"
        assert vm.check(f"modinfo -k {newer} -F vermagic {GOOD}").startswith("6.9.")
        assert vm.check(f"stat -c %Y.%i /lib/modules/{release}/modules.dep") == index, (
            "the running kernel's is untouched"
        )
        assert not findings(vm, "store-version-missing")
        store(vm, "deactivate", GOOD, "--kernel", newer)
        assert vm.run(f"modinfo -k {newer} {GOOD}").code != 0
        assert modinfo(vm, "filename").startswith(f"/lib/modules/{release}/updates/kmodd/")
    finally:
        vm.check(f"rm -rf {tree}", timeout=120)


def test_what_is_no_file_is_refused_at_once(vm: Machine) -> None:
    vm.check("mkfifo -m 600 /root/fifo")
    for path in ("/root", "/dev/zero"):
        assert "regular file" in refused(vm, "import", path)
    assert "regular file" in vm.run("kmodctl store import /root/fifo", timeout=30).stderr


def test_unsigned_modules_under_lockdown(boot_vm: Any, tmp_path: Path) -> None:
    vm = boot_vm("lockdown=integrity", kmodd=True)
    said = refused(vm, "import", "--shadow", f"{BROKEN}/dummy_unsigned.ko")
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
    store(vm, "import", "--shadow", "--version", "1", *signing, f"{BROKEN}/dummy_unsigned.ko")
    (row,) = store(vm, "list")
    assert (row["signed"], row["signer"]) == (True, "ACME modules")
    said = refused(vm, "activate", "dummy", "1", "--load")
    assert "Lockdown" in said
    assert "the key of its signer, 'ACME modules', is not among the kernel's" in said
    assert "it has 'Build time autogenerated kernel key'" in said
    assert "mokutil --import" in said
    assert [row["active"] for row in store(vm, "list")] == [False]
    assert modinfo(vm, "filename", "dummy").startswith(f"/lib/modules/{release}/kernel/")
    vm.check(["modprobe", "dummy"])
