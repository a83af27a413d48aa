"""Each test module does what ``tests/modules/README.md`` says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.vm.machine import Machine

MODULES = Path(__file__).resolve().parent.parent / "modules"
UNLOADABLE = ("good", "dep_a", "dep_c", "soft", "xz", "zst", "info", "params", "chardev", "blockdev", "alias_twin")
BROKEN = "/usr/lib/kmodd-test/broken"


def loaded(vm: Machine) -> set[str]:
    return {
        line.split()[0].removeprefix("kmodd_test_")
        for line in vm.check("cat /proc/modules").splitlines()
        if "kmodd_test" in line
    }


@pytest.fixture(autouse=True)
def nothing_left(clean_vm: Machine) -> Iterator[None]:
    """Each test begins without test modules; what has no exit stays out of the way."""
    yield
    modules = "lsmod | grep -o '^kmodd_test_[a-z_0-9]*' | grep -v permanent"
    # A chain goes from its top.
    left = clean_vm.run(f"for turn in 1 2 3; do for m in $({modules}); do rmmod $m; done; done; {modules}")
    assert left.stdout == ""


@pytest.mark.parametrize("name", UNLOADABLE)
def test_loads_and_unloads(clean_vm: Machine, name: str) -> None:
    clean_vm.check(["modprobe", f"kmodd_test_{name}"])
    assert name in loaded(clean_vm)
    clean_vm.check(["modprobe", "-r", f"kmodd_test_{name}"])
    # Not the whole chain: modprobe leaves dep_a when it removes dep_c.
    assert name not in loaded(clean_vm)


def test_the_chain_and_the_soft_dependencies_come_along(clean_vm: Machine) -> None:
    clean_vm.check("modprobe kmodd_test_dep_c; modprobe kmodd_test_soft")
    assert loaded(clean_vm) == {"dep_a", "dep_b", "dep_c", "soft", "soft_pre", "soft_post"}


def test_aliases_resolve(clean_vm: Machine) -> None:
    for alias in ("kmodd-test-alias", "test:v0001p00ffd1234"):
        assert "kmodd_test_info.ko" in clean_vm.check(["modprobe", "-n", "-v", alias])
    assert len(clean_vm.check("modprobe -R kmodd-test-shared").split()) == 2


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("modprobe kmodd_test_fail", "Input/output error"),
        ("modprobe kmodd_test_fail error=-28", "No space left on device"),
        ("modprobe kmodd_test_needs_fail", "Input/output error"),
        ("modprobe kmodd_test_nodev", "No such device"),
        ("modprobe kmodd_test_opnotsupp", "Operation not supported"),
        ("modprobe kmodd_test_params level=12", "Numerical result out of range"),
        ("modprobe kmodd_test_params an_int=abc", "Invalid argument"),
        (f"insmod {BROKEN}/dummy_tampered_signature.ko", "Key was rejected by service"),
        (f"insmod {BROKEN}/dummy_tampered_code.ko", "Key was rejected by service"),
        (f"insmod {BROKEN}/dummy_truncated.ko", "Invalid module format"),
        (f"insmod {BROKEN}/dummy_not_elf.ko", "Invalid module format"),
        (f"insmod {BROKEN}/dummy_foreign_architecture.ko", "Invalid module format"),
        (f"insmod {BROKEN}/kmodd_test_vermagic_flags.ko", "Invalid module format"),
    ],
)
def test_is_refused(clean_vm: Machine, command: str, message: str) -> None:
    result = clean_vm.run(command)
    assert result.code == 1
    # kmod has two wordings for EINVAL, by what it was doing.
    assert message in result.stderr or (message == "Invalid argument" and "Invalid parameters" in result.stderr)
    assert loaded(clean_vm) == set()


@pytest.mark.parametrize(
    ("file", "name"), [("dummy_unsigned", "dummy"), ("kmodd_test_vermagic_release", "kmodd_test_good")]
)
def test_is_accepted_though_it_looks_wrong(clean_vm: Machine, file: str, name: str) -> None:
    clean_vm.check(["insmod", f"{BROKEN}/{file}.ko"])
    clean_vm.check(["rmmod", name])


def test_parameters_of_every_type(clean_vm: Machine) -> None:
    clean_vm.check(
        "modprobe kmodd_test_params a_bool=1 an_invbool=1 level=7 an_array=4,5,6 'a_charp=\"two words\"' secret=42"
    )
    folder = "/sys/module/kmodd_test_params/parameters"
    shown = dict(line.split(":", 1) for line in clean_vm.check(f"cd {folder}; grep -H . *").splitlines())
    expected = {"a_bool": "Y", "level": "6", "an_array": "4,5,6", "a_charp": "two words", "secret": "42"}
    assert expected.items() <= shown.items()
    assert "hidden" not in shown
    assert clean_vm.run(f"cat {folder}/secret", user="alice").code == 1
    assert clean_vm.run(f"echo 12 > {folder}/level").code == 1
    assert clean_vm.check(f"echo 5 > {folder}/level; cat {folder}/level").strip() == "4"
    clean_vm.check("rmmod kmodd_test_params")


def test_a_process_and_a_mount_keep_their_module_busy(clean_vm: Machine) -> None:
    clean_vm.check("modprobe kmodd_test_chardev; udevadm settle")
    holder = clean_vm.start("exec 3< /dev/kmodd_test_chardev; echo open; sleep 600")
    holder.wait_for_output("open")
    assert clean_vm.run("rmmod kmodd_test_chardev").code == 1
    holder.kill()
    holder.wait()
    clean_vm.check("rmmod kmodd_test_chardev")
    clean_vm.check("modprobe kmodd_test_blockdev; mkfs.ext4 -q /dev/kmodd_test_blk0; mount /dev/kmodd_test_blk0 /mnt")
    assert clean_vm.run("rmmod kmodd_test_blockdev").code == 1
    clean_vm.check("umount /mnt; udevadm settle; rmmod kmodd_test_blockdev")


def test_holds_itself_until_released(clean_vm: Machine) -> None:
    clean_vm.check("modprobe kmodd_test_self_ref hold=1")
    assert clean_vm.run("rmmod kmodd_test_self_ref").code == 1
    clean_vm.check("echo 0 > /sys/module/kmodd_test_self_ref/parameters/hold; rmmod kmodd_test_self_ref")


def test_init_hangs_until_it_is_released(clean_vm: Machine) -> None:
    loading = clean_vm.start("modprobe kmodd_test_init_wait error=-5")
    clean_vm.check("until [ -e /sys/kernel/kmodd_test_init_wait/release ]; do sleep 0.1; done")
    assert clean_vm.check("cat /sys/module/kmodd_test_init_wait/initstate").strip() == "coming"
    clean_vm.check("echo 1 > /sys/kernel/kmodd_test_init_wait/release")
    assert "Input/output error" in loading.wait().stderr
    assert loaded(clean_vm) == set()


def test_exit_hangs_until_it_is_released(clean_vm: Machine) -> None:
    clean_vm.check("modprobe kmodd_test_exit_wait")
    unloading = clean_vm.start("rmmod kmodd_test_exit_wait")
    clean_vm.check("until grep -q going /sys/module/kmodd_test_exit_wait/initstate; do sleep 0.1; done")
    clean_vm.check("echo 1 > /sys/kernel/kmodd_test_exit_wait/release")
    assert unloading.wait().code == 0
    assert loaded(clean_vm) == set()


def test_init_takes_its_time(clean_vm: Machine) -> None:
    took = clean_vm.check("TIMEFORMAT=%R; { time modprobe kmodd_test_slow ms=1500; } 2>&1")
    assert float(took) >= 1.5
    clean_vm.check("rmmod kmodd_test_slow")


def test_the_readme_lists_every_module() -> None:
    readme = (MODULES / "README.md").read_text()
    assert [source.stem for source in MODULES.glob("*.c") if f"`{source.stem}`" not in readme] == []


def test_has_no_exit(clean_vm: Machine) -> None:
    clean_vm.check("modprobe kmodd_test_permanent")
    assert "[permanent]" in clean_vm.check("grep kmodd_test_permanent /proc/modules")
    assert clean_vm.run("rmmod kmodd_test_permanent").code == 1
