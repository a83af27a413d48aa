# SPDX-License-Identifier: LGPL-2.1-or-later
"""The attack surface of the stock kernel, tried: an unprivileged user goes every route that `org.kmodd1.Surface` reports as open
to any user or to any user with a namespace, and the kernel's own trace says what it asked for and what was loaded."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tests.system.client import Client
    from tests.vm.machine import Machine

SURFACE = "org.kmodd1.Surface"
TRACE = "/sys/kernel/tracing/instances/surface"
SCRIPT = "/srv/guest_surface.py"
RULES = "/etc/modprobe.d/surface.conf"
OPEN = ("unprivileged", "userns")
SECONDS = 1500.0
_REQUEST = re.compile(r"module_request: (\S+) wait=")
_LOAD = re.compile(r"module_load: (\S+)")


@dataclass(frozen=True)
class Trace:
    """What the kernel asked for, and what was loaded."""

    requests: frozenset[str]
    loads: frozenset[str]


@pytest.fixture(scope="module", autouse=True)
def _traced(vm: Machine) -> Iterator[None]:
    vm.copy_in(Path(__file__).with_name("guest_surface.py"), "/srv")
    vm.check(
        f"mountpoint -q /sys/kernel/tracing || mount -t tracefs none /sys/kernel/tracing; mkdir -p {TRACE}"
        f" && echo 16384 > {TRACE}/buffer_size_kb"
        f" && echo 1 > {TRACE}/events/module/module_request/enable && echo 1 > {TRACE}/events/module/module_load/enable"
    )
    yield
    vm.run(f"rmdir {TRACE}; rm -f {RULES}")


def attempt(vm: Machine, tries: Iterable[tuple[str, str, bool]]) -> tuple[Trace, list[str]]:
    """What comes of these as alice, and what could not be tried."""
    vm.check(f"echo > {TRACE}/trace")
    done = vm.run(
        ["/usr/bin/python3", "-B", SCRIPT], user="alice", input=json.dumps(list(tries)), timeout=SECONDS, check=True
    )
    text = vm.read_file(f"{TRACE}/trace").decode()
    print(done.stderr)
    return Trace(frozenset(_REQUEST.findall(text)), frozenset(_LOAD.findall(text))), json.loads(done.stdout)


def call(client: Client, member: str, *arguments: Any) -> Any:
    return client.call(member, *arguments, {}, interface=SURFACE, signature="s" * len(arguments) + "a{sv}")


def ranked(client: Client) -> dict[str, Mapping[str, Any]]:
    return {row["module"]: row for row in call(client, "Get")}


@dataclass(frozen=True)
class Reported:
    """The daemon's answer: modules by reach, and direct routes of the two widest."""

    reach: dict[str, str]
    routes: dict[str, Mapping[str, Any]]
    modules: dict[str, set[str]]
    """Those that a request is reported to load."""


def report(client: Client) -> Reported:
    rows = ranked(client)
    routes: dict[str, Mapping[str, Any]] = {}
    modules: dict[str, set[str]] = {}
    for name, row in rows.items():
        if row["reach-without"] not in OPEN:
            continue
        for route in call(client, "GetRoutes", name):
            if route["reach"] in OPEN and not route["through"]:
                routes[route["request"]] = route
                if route["open"]:
                    modules.setdefault(route["request"], set()).add(name)
    return Reported({name: row["reach"] for name, row in rows.items()}, routes, modules)


def tries(routes: Iterable[Mapping[str, Any]]) -> list[tuple[str, str, bool]]:
    """Families before what needs them, subsystems before what belongs to them."""
    order = [
        "socket-family",
        "netlink-protocol",
        "generic-netlink",
        "algorithm-type",
        "socket-protocol",
        "netfilter-subsystem",
    ]
    rank = {kind: number for number, kind in enumerate(order)}
    listed = sorted(routes, key=lambda route: (rank.get(route["kind"], len(order)), route["request"]))
    return [(route["kind"], route.get("node") or route["request"], route["reach"] == "userns") for route in listed]


def spelled(text: str) -> str:
    return text.replace("-", "_")


def test_every_open_route_is_gone_by_an_unprivileged_user_and_there_are_no_others(vm: Machine, client: Client) -> None:
    before = set(vm.check("cut -d' ' -f1 /proc/modules").split())
    reported = report(client)
    opened = {request: route for request, route in reported.routes.items() if route["open"]}
    assert len(opened) > 500, "the cloud kernel has more"
    trace, untried = attempt(vm, tries(opened.values()))
    print(f"{len(opened)} routes, {len(trace.requests)} requests, {len(trace.loads)} loads, not tried: {untried}")
    assert trace.loads, "nothing was traced"
    # A helper of address translation is asked for with a connection at hand, by Open vSwitch and tc(8).
    assert {request for request in untried if not request.startswith("ip_nat_")} == set()
    asked = {spelled(request) for request in trace.requests}
    after = set(vm.check("cut -d' ' -f1 /proc/modules").split()) | before | set(trace.loads)
    # What came with the module of another request is there, and the kernel need not ask.
    not_gone = {
        request: opened[request]["kind"]
        for request, modules in reported.modules.items()
        if request not in untried and spelled(request) not in asked and not modules <= after
    }
    not_loaded = {
        request: sorted(modules - after)
        for request, modules in reported.modules.items()
        if request not in untried and not modules <= after
    }
    others = sorted(name for name in trace.loads if reported.reach.get(name) not in OPEN)
    print("not gone", not_gone)
    print("not loaded", not_loaded)
    print("others", others)
    # What they depend on asks for its hypervisor, and is not there.
    assert set(not_loaded) <= {"net-pf-40", "fs-xenfs"}
    assert (not_gone, others) == ({}, [])


def node_routes(client: Client) -> list[Mapping[str, Any]]:
    """Those of tun itself; others need it."""
    rows = call(client, "GetRoutes", "tun")
    return [row for row in rows if row["kind"] == "device-node" and not row["through"]]


def test_nodes_are_seen_with_their_modes_and_cannot_be_opened(vm: Machine, client: Client) -> None:
    assert call(client, "GetSummary")["nodes-known"] is True
    (route,) = node_routes(client)
    assert (route["open"], route["reach"], route["node"]) == (True, "unprivileged", "/dev/net/tun")
    vm.check("chmod 600 /dev/net/tun")
    try:
        (route,) = node_routes(client)
        assert (route["reach"], route["way"]) == ("root", "root by opening /dev/net/tun")
    finally:
        vm.check("chmod 666 /dev/net/tun")
    # The daemon sees them in its own mount namespace, and its control group lets it open none.
    pid = vm.check("systemctl show -P MainPID kmodd").strip()
    group = vm.check(f"sed -n 's/^0:://p' /proc/{pid}/cgroup").strip()
    script = f"echo $$ > /sys/fs/cgroup{group}/cgroup.procs; exec nsenter -t {pid} -m cat /run/kmodd-devices/vda"
    opened = vm.run(["sh", "-c", script])
    assert opened.code != 0
    assert "Operation not permitted" in opened.stderr


@pytest.mark.parametrize(
    ("setting", "value", "kind", "request_text"),
    [
        ("kernel.unprivileged_userns_clone", "0", "link-kind", "rtnl-link-ifb"),
        ("user.max_user_namespaces", "0", "file-system", "fs-zonefs"),
        ("kernel.modprobe", "", "socket-family", "net-pf-41"),
        ("kernel.modprobe", "/bin/false", "socket-family", "net-pf-41"),
    ],
)
def test_a_setting_that_closes_a_route_stops_the_user(
    vm: Machine, client: Client, setting: str, value: str, kind: str, request_text: str
) -> None:
    module = {"rtnl-link-ifb": "ifb", "fs-zonefs": "zonefs", "net-pf-41": "kcm"}[request_text]
    vm.run(f"modprobe -r {module}")
    before = vm.check(f"sysctl -n {setting}").strip()
    vm.check(["sysctl", f"{setting}={value}"])
    try:
        route = next(route for route in call(client, "GetRoutes", module) if route["request"] == request_text)
        assert (route["open"], route["gate"]) == (False, setting)
        trace, _ = attempt(vm, [(kind, request_text, route["reach"] == "userns")])
        assert module not in trace.loads
    finally:
        vm.check(["sysctl", f"{setting}={before}"])
    route = next(route for route in call(client, "GetRoutes", module) if route["request"] == request_text)
    assert route["open"]
    trace, _ = attempt(vm, [(kind, request_text, route["reach"] == "userns")])
    assert module in trace.loads


@pytest.mark.parametrize(
    ("rule", "is_open"),
    [
        ("blacklist algif_rng", True),
        ("install algif_rng /bin/false", False),
        ("softdep algif_rng pre: softdog\ninstall algif_rng /bin/false", True),
    ],
)
def test_a_rule_stops_the_user_only_where_the_answer_says_so(
    vm: Machine, client: Client, rule: str, is_open: bool
) -> None:
    vm.run("modprobe -r algif_rng")
    vm.write_file(RULES, f"{rule}\n")
    try:
        route = next(route for route in call(client, "GetRoutes", "algif_rng") if route["request"] == "algif-rng")
        assert route["open"] is is_open
        trace, _ = attempt(vm, [("algorithm-type", "algif-rng", False)])
        assert ("algif_rng" in trace.loads) is is_open
    finally:
        vm.check(f"rm -f {RULES}")
