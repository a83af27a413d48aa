# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl config apply --initramfs` with the real initramfs-tools and the real dracut."""

import json
from typing import Any

import pytest

from tests.vm.machine import Machine

WISHES = "/etc/kmodd/modules.d/test.toml"
SLOW = 600.0
"""Seconds; making an image takes two minutes under emulation."""
# What each is told, so that it makes a small image, in a compression that is not everybody's, and counts how often it runs.
TOOLS = {
    "/etc/initramfs-tools/conf.d/small": "MODULES=list\nCOMPRESS=lzop\n",
    "/etc/initramfs-tools/hooks/count": '#!/bin/sh\n[ "$1" = prereqs ] || echo run >> /root/runs\n',
}
DRACUT = {
    "/etc/dracut.conf.d/small.conf": (
        'hostonly="yes"\nhostonly_cmdline="no"\ndracutmodules+=" base kernel-modules "\ndrivers+=" dummy "\n'
        'filesystems+=" ext4 "\ncompress="lz4"\necho run >> /root/runs\n'
    ),
}


def drift(vm: Machine) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(vm.check(["kmodctl", "--json", "config", "drift"]))
    return rows


def stale_image(vm: Machine, release: str, *inside: str) -> None:
    """An image of nearly nothing where Debian has it, for both."""
    vm.check(
        f"set -e; cd $(mktemp -d); mkdir -p etc/modprobe.d; for name in {' '.join(inside)}; do"
        " mkdir -p $(dirname $name); echo > $name; done;"
        f" find . | cpio -o -H newc 2>/dev/null | gzip > /boot/initrd.img-{release}"
    )


@pytest.mark.parametrize("maker", ["initramfs-tools", "dracut"])
def test_the_initramfs_is_refreshed_once_for_all_changes(fresh_vm: Machine, maker: str) -> None:
    vm = fresh_vm
    release = vm.check("uname -r").strip()
    for path, text in (TOOLS if maker == "initramfs-tools" else DRACUT).items():
        vm.write_file(path, text, mode=0o755 if "/hooks/" in path else 0o644)
    # What dracut leaves in an image that it makes for this machine.
    mark = "usr/lib/dracut/hostonly-files" if maker == "dracut" else "conf/arch.conf"
    stale_image(vm, release, mark)
    vm.write_file(
        WISHES,
        '[module.kmodd_test_good]\nblacklist = "hard"\n[module.kmodd_test_info]\nblacklist = "soft"\n'
        "[module.kmodd_test_params]\noptions = { level = 4 }\n",
    )
    vm.check("systemctl reload kmodd")
    refused = vm.run(["kmodctl", "config", "apply", "--initramfs"], user="alice", timeout=60)
    assert (refused.code, "only root can refresh" in refused.stderr) == (4, True)
    shown = vm.check(["kmodctl", "config", "apply", "--initramfs", "--dry-run"])
    command = {
        "initramfs-tools": f"update-initramfs -u -k {release}",
        "dracut": f"dracut -f /boot/initrd.img-{release} {release}",
    }[maker]
    assert "would then be refreshed if it is older" in " ".join(shown.split())
    assert vm.run("ls /etc/modprobe.d/kmodd-* /root/runs").code != 0, "nothing was changed by either"
    done = vm.run(["kmodctl", "config", "apply", "--initramfs"], timeout=SLOW)
    assert done.code == 0, done.stdout + done.stderr
    assert f"The initramfs was refreshed with: {command}" in " ".join(done.stdout.split())
    assert vm.check("cat /root/runs").split() == ["run"]
    assert drift(vm) == []
    # As its own tool shows it: both files of ours are inside, as they are in /etc.
    lister = "lsinitramfs" if maker == "initramfs-tools" else "lsinitrd"
    inside = vm.check(f"{lister} /boot/initrd.img-{release}", timeout=SLOW)
    assert "etc/modprobe.d/kmodd-blacklist.conf" in inside
    assert "etc/modprobe.d/kmodd-options.conf" in inside
    assert mark in inside
    again = vm.check(["kmodctl", "config", "apply", "--initramfs"])
    assert "The initramfs is up to date." in again
    assert vm.check("cat /root/runs").split() == ["run"]
    # Read by kmodd itself, in a compression that modules never have, after one more change.
    vm.check(["kmodctl", "config", "blacklist", "kmodd_test_good", "--off"])
    (row,) = [row for row in drift(vm) if row["kind"] == "initramfs"]
    assert row["actual"] == "/etc/modprobe.d/kmodd-blacklist.conf has changed"
    assert row["hint"] == command
