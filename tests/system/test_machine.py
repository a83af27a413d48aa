"""The virtual machine does what the other tests here rely on."""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING

import pytest

from tests.clock import clock
from tests.vm import image, snapshot
from tests.vm.channel import CommandError, CommandTimeoutError
from tests.vm.machine import Machine
from tests.vm.qemu import GuestDeadError, Options

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.system.conftest import Boot


def test_a_command_brings_back_its_exit_code_and_both_streams(clean_vm: Machine) -> None:
    result = clean_vm.run("echo out; echo err >&2; exit 7")
    assert (result.code, result.stdout, result.stderr) == (7, "out\n", "err\n")


def test_a_command_killed_by_a_signal_and_one_that_does_not_exist(clean_vm: Machine) -> None:
    assert clean_vm.run("kill -9 $$").code == -9
    missing = clean_vm.run(["no-such-program"])
    assert missing.code == 127
    assert "no-such-program" in missing.stderr


def test_check_raises_with_the_output(clean_vm: Machine) -> None:
    with pytest.raises(CommandError, match="the reason"):
        clean_vm.check("echo the reason >&2; false")


def test_a_command_runs_as_another_user_with_their_groups(clean_vm: Machine) -> None:
    assert clean_vm.check("id -un; id -Gn; echo $HOME", user="bob").split() == ["bob", "bob", "netadm", "/home/bob"]
    assert clean_vm.check("id -Gn", user="alice").split() == ["alice"]


def test_binary_content_survives_both_ways(clean_vm: Machine) -> None:
    content = os.urandom(2_000_000)
    clean_vm.write_file("/root/folder/blob", content, mode=0o600)
    assert clean_vm.read_file("/root/folder/blob") == content
    assert clean_vm.check("stat -c %a /root/folder/blob").strip() == "600"


def test_folders_are_copied_in_and_out(clean_vm: Machine, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep/file").write_text("content")
    (source / "script").write_text("#!/bin/sh\necho ran\n")
    (source / "script").chmod(0o755)
    clean_vm.copy_in(source, "/root/copied")
    assert clean_vm.check("/root/copied/script").strip() == "ran"
    clean_vm.copy_out("/root/copied", tmp_path / "back")
    assert (tmp_path / "back/copied/deep/file").read_text() == "content"


def test_commands_run_at_the_same_time(clean_vm: Machine) -> None:
    waiting = [clean_vm.start("read line; echo got $line") for _ in range(8)]
    assert clean_vm.check("echo meanwhile").strip() == "meanwhile"
    for number, command in enumerate(waiting):
        command.write(f"{number}\n".encode())
    assert [command.wait().stdout for command in waiting] == [f"got {number}\n" for number in range(8)]


def test_output_is_seen_while_the_command_runs(clean_vm: Machine) -> None:
    command = clean_vm.start("echo ready; sleep 600")
    assert "ready" in command.wait_for_output("ready")
    command.kill(15)
    assert command.wait().code == -15


def test_a_background_process_does_not_hold_up_its_parent(clean_vm: Machine) -> None:
    started = clock()
    assert clean_vm.run("sleep 60 & echo started").stdout == "started\n"
    assert clock() - started < 30


def test_a_command_that_takes_too_long_is_killed(clean_vm: Machine) -> None:
    with pytest.raises(CommandTimeoutError, match="before") as caught:
        clean_vm.run("echo before; sleep 600", timeout=1)
    assert caught.value.killed
    assert clean_vm.run(["pgrep", "-x", "-f", "sleep 600"]).code == 1


def test_a_terminal_has_its_size(clean_vm: Machine) -> None:
    command = clean_vm.start("stty size; read line; stty size", window=(33, 99))
    command.wait_for_output("33 99")
    command.resize(20, 70)
    command.write(b"\n")
    assert "20 70" in command.wait().stdout


def test_the_clock_is_right_after_the_restore(clean_vm: Machine) -> None:
    assert abs(float(clean_vm.check("date +%s.%N")) - time.time()) < 30


def test_the_machine_is_as_described(clean_vm: Machine) -> None:
    assert clean_vm.check("hostname").strip() == "kmodd-vm"
    assert clean_vm.check("systemctl is-system-running").strip() == "running"
    assert clean_vm.check("uname -r").strip() == clean_vm.image.release
    assert clean_vm.image.suite.name in clean_vm.check(". /etc/os-release; echo $PRETTY_NAME")
    assert clean_vm.check("cat /proc/sys/kernel/panic_on_oops").strip() == "0"
    assert clean_vm.check("ls /var/log/journal").strip()
    assert clean_vm.run("command -v gcc").code == 1
    # Examples load it: it must not be there already.
    assert "loop" not in clean_vm.check("lsmod | cut -d' ' -f1").split()


def test_two_machines_from_one_snapshot_do_not_see_each_other(clean_vm: Machine) -> None:
    clean_vm.write_file("/root/mine", "first")
    clean_vm.check("echo first > /dev/shm/mine")
    with snapshot.start_clean() as other:
        assert other.run("cat /root/mine /dev/shm/mine").stdout == ""
        other.check("echo second > /root/mine; sync")
    assert clean_vm.check("cat /root/mine /dev/shm/mine") == "firstfirst\n"


def test_a_prepared_machine_is_restored_as_it_was_left() -> None:
    prepared = []

    def prepare(machine: Machine) -> None:
        prepared.append(machine)
        machine.check("modprobe dummy; echo state > /dev/shm/state; echo disk > /root/disk")
        machine.check("systemd-run --unit=waiting sleep 100000")

    built, options = image.build(), Options()
    inputs: list[str | bytes | Path] = ["test of a prepared machine, 1"]
    for _ in range(2):
        state = snapshot.prepared_state(built, options, "test", inputs, prepare)
        with Machine(built, options, state=state) as machine:
            assert machine.check("cat /dev/shm/state /root/disk").split() == ["state", "disk"]
            assert machine.check("systemctl is-active waiting; cat /sys/module/dummy/initstate").split() == [
                "active",
                "live",
            ]
            machine.check("echo changed > /dev/shm/state; echo changed > /root/disk; sync")
    assert len(prepared) <= 1


@pytest.fixture(scope="module")
def ruined_vm() -> Iterator[Machine]:
    with snapshot.start_clean() as machine:
        yield machine


def test_the_agent_answers_while_a_module_hangs(ruined_vm: Machine) -> None:
    with pytest.raises(CommandTimeoutError) as caught:
        ruined_vm.run(["modprobe", "kmodd_test_init_hang"], timeout=3)
    assert not caught.value.killed
    assert ruined_vm.check("cat /sys/module/kmodd_test_init_hang/initstate").strip() == "coming"
    ruined_vm.check("modprobe kmodd_test_exit_hang")
    with pytest.raises(CommandTimeoutError) as caught:
        ruined_vm.run(["rmmod", "kmodd_test_exit_hang"], timeout=3)
    assert not caught.value.killed
    assert ruined_vm.ping()


def test_the_agent_answers_after_an_oops(ruined_vm: Machine) -> None:
    assert ruined_vm.run(["modprobe", "kmodd_test_init_oops"]).code == -9
    ruined_vm.check("modprobe kmodd_test_exit_oops")
    assert ruined_vm.run(["rmmod", "kmodd_test_exit_oops"]).code == -9
    assert "NULL pointer dereference" in ruined_vm.kernel_log()
    assert ruined_vm.ping()


def test_a_reset_keeps_the_disk_and_nothing_else(ruined_vm: Machine) -> None:
    ruined_vm.check("echo kept > /root/kept; sync")
    before = ruined_vm.check("cat /proc/sys/kernel/random/boot_id")
    ruined_vm.reboot(force=True)
    assert ruined_vm.check("cat /proc/sys/kernel/random/boot_id") != before
    assert ruined_vm.check("cat /root/kept").strip() == "kept"
    assert "kmodd_test" not in ruined_vm.check("lsmod")


def test_an_orderly_reboot_and_power_off(ruined_vm: Machine) -> None:
    ruined_vm.reboot()
    assert ruined_vm.check("systemctl is-system-running").strip() == "running"
    assert "systemd-shutdown" in ruined_vm.check("journalctl -b -1 --no-pager | tail -n 50")
    ruined_vm.power_off()
    with pytest.raises(GuestDeadError, match="QEMU ended"):
        ruined_vm.run("true")


def test_a_panic_is_reported_not_waited_for() -> None:
    with snapshot.start_clean() as machine:
        machine.start("echo c > /proc/sysrq-trigger")
        started = clock()
        with pytest.raises(GuestDeadError, match="panicked"):
            machine.run("sleep 300", timeout=300)
        assert clock() - started < 60


def test_the_kernel_command_line_can_be_extended(boot_vm: Boot) -> None:
    machine = boot_vm("lockdown=integrity")
    assert "[integrity]" in machine.check("cat /sys/kernel/security/lockdown")
    refused = machine.run("modprobe kmodd_test_good")
    assert "Operation not permitted" in refused.stderr
    machine.check("modprobe dummy")


def test_a_port_of_the_guest_can_be_reached() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with snapshot.start_clean(Options(network=True), forward={port: 8000}) as machine:
        script = (
            "import socket; s = socket.create_server(('', 8000)); print('ready', flush=True); "
            "c, _ = s.accept(); c.sendall(b'hello')"
        )
        machine.start(["python3", "-c", script]).wait_for_output("ready")
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            client.settimeout(20)
            assert client.recv(100) == b"hello"
