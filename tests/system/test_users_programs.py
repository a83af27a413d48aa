# SPDX-License-Identifier: LGPL-2.1-or-later
"""What keeps modules busy that further programs set up: ebtables-legacy and container runtimes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.system.client import soon
from tests.system.explains import explains
from tests.system.test_users import freed, kinds
from tests.system.test_users_kinds import HOLD

if TYPE_CHECKING:
    from tests.system.client import Client
    from tests.vm.machine import Machine


# --- ebtables-legacy --------------------------------------------------------------------------------------------------


@explains("a rule of ebtables-legacy", "ebtables-legacy -t")
def test_rules_of_ebtables_legacy(vm: Machine, client: Client) -> None:
    """Several in one chain, with one between them that holds another module, and in another network namespace."""
    from_address = "-p IPv4 --ip-source 10.0.0.1 -j DROP"
    vm.check(
        f"ebtables-legacy -N mine; ebtables-legacy -A INPUT {from_address}; ebtables-legacy -A INPUT --limit 5/second -j ACCEPT; "
        f"ebtables-legacy -A INPUT {from_address}; ebtables-legacy -A mine {from_address}; ip netns add blue; ip netns add green; "
        f"ip netns exec blue ebtables-legacy -A FORWARD {from_address}"
    )
    explained = freed(
        vm,
        client,
        "ebt_ip",
        "ebtables-legacy -t filter -D INPUT 3",
        "ebtables-legacy -t filter -D mine 1",
        "ebtables-legacy -t filter -D INPUT 1",
        "ip netns exec blue ebtables-legacy -t filter -D FORWARD 1",
    )
    assert {(kind, detail) for kind, detail in ((user["kind"], user["detail"]) for user in explained["users"])} == {
        ("rule", "ip"),
        ("rule", "ip, in network namespace blue"),
    }
    assert vm.check("ebtables-legacy -L INPUT").count("--limit-burst") == 1, "no other rule is gone"
    freed(vm, client, "ebt_limit", "ebtables-legacy -t filter -D INPUT 1")
    vm.check("ebtables-legacy -A INPUT -j mine; ip netns exec blue ebtables-legacy -A FORWARD -j DROP")
    flush = "ebtables-legacy -t filter -F"
    freed(vm, client, "ebtable_filter", flush, f"ip netns exec blue {flush}")
    vm.check("ip netns del blue; ip netns del green")


# --- containers -------------------------------------------------------------------------------------------------------

INSIDE = """
ip link set lo up
nft 'add table inet t; add chain inet t c; add rule inet t c ct state new'
exec sleep 600
"""
BUNDLE = {
    "ociVersion": "1.0.2",
    "process": {
        "user": {"uid": 0, "gid": 0},
        "args": ["/usr/bin/sh", "-ec", INSIDE],
        "env": ["PATH=/usr/sbin:/usr/bin"],
        "cwd": "/",
        "capabilities": {kind: ["CAP_NET_ADMIN"] for kind in ("bounding", "effective", "permitted")},
    },
    "root": {"path": "rootfs"},
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/usr", "type": "none", "source": "/usr", "options": ["bind", "ro"]},
    ],
    "linux": {"namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")]},
}


@explains("what is in a container of crun", "crun delete --force")
def test_container_is_ended_by_its_runtime(vm: Machine, client: Client) -> None:
    """Its network namespace is root's, and is not entered: the runtime ends it."""
    vm.write_file("/var/tmp/web/config.json", json.dumps(BUNDLE))
    vm.check(
        "modprobe nft_ct; cd /var/tmp/web; mkdir -p rootfs/proc rootfs/usr rootfs/dev; "
        "for each in bin lib lib64 sbin; do ln -s usr/$each rootfs/$each; done; "
        "crun --systemd-cgroup run --detach web </dev/null >/var/tmp/web/log 2>&1 || { cat log; false; }"
    )
    soon(lambda: ("rule", "inet t c handle 2") in kinds(client.explain("nft_ct")), "the rule is in the answer")
    explained = client.explain("nft_ct")
    assert [(user["container"], user["unit"]) for user in explained["users"]] == [("web", "crun-web.scope")]
    assert explained["free"] == ["crun delete --force web", "kmodctl unload nft_ct"]
    assert explained["partial"] == ""
    vm.check(explained["free"][0])
    soon(lambda: client.explain("nft_ct")["references"] == 0, "the kernel takes the namespace down")
    vm.check(explained["free"][1])


@explains("the first process of a process namespace", "kill -KILL")
def test_first_process_of_a_namespace(vm: Machine, client: Client) -> None:
    """The kernel keeps every other signal from it, as from most containers' first process."""
    vm.check("modprobe vhost_net; udevadm settle")
    vm.write_file("/tmp/hold.py", HOLD)
    process = vm.start(["unshare", "--pid", "--fork", "python3", "/tmp/hold.py", "open('/dev/vhost-net')"])
    process.wait_for_output("open")
    pid = vm.check("pgrep -nf '^python3 /tmp/hold.py'").strip()
    freed(vm, client, "vhost_net", f"kill -KILL {pid}")
    process.wait()


def test_nothing_was_denied(vm: Machine) -> None:
    assert "Traceback" not in vm.journal()
    assert 'apparmor="DENIED"' not in vm.journal("_TRANSPORT=kernel")
