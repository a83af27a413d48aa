# SPDX-License-Identifier: LGPL-2.1-or-later
"""The attack surface of Debian's stock kernel, from its own tables: known bugs are reachable by the routes they were exploited on,
each route loads what modprobe loads, and each guard and rule closes what it closes."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from kmodd.core.surface.surface import compute
from kmodd.kernel.modules.index import LibkmodIndex
from kmodd.model import KernelFacts
from kmodd.model.surface import DeviceNode, Gate, Guard, Reach, Route, Surface, Tables
from kmodd.names import ModuleName, canonical
from tests.conformance.conftest import HOST
from tests.conformance.test_stock_kernel import Stock

OTHERS = frozenset({"name", "device", "device-node"})


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory, shim: Path) -> Stock:
    """The kernel of the virtual machine's image."""
    return Stock(tmp_path_factory.mktemp("surface"), shim)


def surface(
    stock: Stock,
    rules: str = "",
    *,
    closed: Iterable[Gate] = (),
    command_line: str = "",
    nodes: tuple[DeviceNode, ...] = (),
) -> Surface:
    """With these rules and closed gates, and nothing loaded."""
    stock.write(rules.encode())
    index = LibkmodIndex(stock.root, stock.release, command_line=command_line)
    guards = tuple(Guard(gate, "x", closes=True, says="closed") for gate in closed)
    try:
        return compute(
            index,
            Tables(guards, nodes),
            KernelFacts(stock.release, command_line=command_line),
            running=True,
        )
    finally:
        index.close()


def routes(report: Surface, module: str) -> dict[str, Route]:
    """Those for the module itself, by request."""
    exposure = report.find(ModuleName(module))
    assert exposure is not None
    return {route.request: route for route in exposure.routes if route.through is None}


def reach(report: Surface, module: str) -> Reach:
    exposure = report.find(ModuleName(module))
    assert exposure is not None
    return exposure.reach


def test_modules_of_known_bugs_are_reachable_as_they_were_exploited(stock: Stock) -> None:
    report = surface(stock)
    expected = {
        "af_alg": ("net-pf-38", Reach.UNPRIVILEGED),
        "algif_aead": ("algif-aead", Reach.UNPRIVILEGED),
        "authencesn": ("crypto-authencesn", Reach.UNPRIVILEGED),
        "openvswitch": ("net-pf-16-proto-16-family-ovs_flow", Reach.UNPRIVILEGED),
        "esp4": ("xfrm-type-2-50", Reach.USERNS),
        "esp6": ("xfrm-type-10-50", Reach.USERNS),
        "nf_tables": ("nfnetlink-subsys-10", Reach.USERNS),
        "cifs": ("fs-cifs", Reach.USERNS),
        "xfs": ("fs-xfs", Reach.USERNS),
        "ip6_tunnel": ("rtnl-link-ip6tnl", Reach.USERNS),
    }
    for module, (request, who) in expected.items():
        route = routes(report, module)[request]
        assert (route.open, route.reach) == (True, who), module
    assert routes(report, "algif_aead")["algif-aead"].by_name
    # The protocol is not there, and nothing loads it.
    dccp = report.find(ModuleName("dccp_diag"))
    assert dccp is not None
    assert dccp.reach is Reach.ROOT
    assert routes(report, "dccp_diag")["net-pf-16-proto-4-type-2-33"].missing == "net-pf-2-proto-33"
    assert reach(report, "hv_netvsc") is Reach.HARDWARE
    assert reach(report, "softdog") is Reach.ROOT


def test_each_route_loads_what_modprobe_inserts(stock: Stock) -> None:
    # A dry run takes /bin/false for a success, so what is needed by others has no install line here: see test_surface.py.
    leaves = "".join(
        f"softdep {name} pre:\ninstall {name} /bin/false\n" for name in ("btrfs", "wireguard", "algif_rng")
    )
    rules = f"{leaves}blacklist esp4\nblacklist nf_tables\nalias net-pf-28 off\ninstall xfs /bin/false\n"
    report = surface(stock, rules)
    # Of each request the modules that it stands for: those that it loads, and those that a rule keeps out.
    loaded: dict[str, set[str]] = {}
    kept_out: dict[str, set[str]] = {}
    for exposure in report.exposures:
        for route in exposure.routes:
            if route.kind not in OTHERS and route.through is None:
                sorted_in = loaded if route.rule is None else kept_out
                sorted_in.setdefault(route.request, set()).add(exposure.module)
    requests = sorted({*loaded, *kept_out})
    assert len(requests) > 500
    assert len(kept_out) > 5
    differ = {}
    for request in requests:
        lines = [line.split()[1] for line in stock.shown(HOST, [request]) if line.startswith("insmod ")]
        inserted = {canonical(Path(path).name.partition(".")[0]) for path in lines}
        if not loaded.get(request, set()) <= inserted or kept_out.get(request, set()) & inserted:
            differ[request] = (loaded.get(request), kept_out.get(request), inserted)
    assert not differ


@pytest.mark.parametrize(
    ("gate", "closed", "untouched"),
    [
        (Gate.USERNS_CLONE, "esp4", "af_alg"),
        (Gate.USER_NAMESPACES, "cifs", "af_alg"),
        (Gate.NET_NAMESPACES, "esp4", "cifs"),
        (Gate.MOUNT_NAMESPACES, "cifs", "esp4"),
        (Gate.APPARMOR_USERNS, "nf_tables", "openvswitch"),
        (Gate.MODPROBE, "af_alg", "hv_netvsc"),
        (Gate.MODULES_DISABLED, "hv_netvsc", ""),
    ],
)
def test_a_guard_closes_its_routes_and_no_others(stock: Stock, gate: Gate, closed: str, untouched: str) -> None:
    before, after = surface(stock), surface(stock, closed=(gate,))
    assert reach(before, closed).rank < reach(after, closed).rank
    assert any(route.gate is gate for route in routes(after, closed).values())
    if untouched:
        assert reach(before, untouched) is reach(after, untouched)


def test_blacklisting_does_not_close_a_request_by_name(stock: Stock) -> None:
    report = surface(stock, "blacklist algif_aead\nblacklist af_alg\n")
    # The family is requested by alias, on which the rule acts: what needs the family is closed with it.
    family = routes(report, "af_alg")["net-pf-38"]
    assert not family.open
    assert family.rule is not None
    assert family.rule.text == "blacklist af_alg"
    assert routes(report, "algif_aead")["algif-aead"].missing == "net-pf-38"
    report = surface(stock, "blacklist algif_aead\n")
    assert routes(report, "algif_aead")["algif-aead"].open
    report = surface(stock, "install algif_aead /bin/false\n")
    assert reach(report, "algif_aead") is Reach.NONE


def test_soft_dependencies_switch_an_install_line_off(stock: Stock) -> None:
    assert reach(surface(stock, "install btrfs /bin/false\n"), "btrfs") is Reach.USERNS
    assert reach(surface(stock, "softdep btrfs pre:\ninstall btrfs /bin/false\n"), "btrfs") is Reach.NONE


def test_the_kernels_own_list_closes_all_routes(stock: Stock) -> None:
    report = surface(stock, command_line="module_blacklist=esp4")
    assert reach(report, "esp4") is Reach.NONE
    # What needs it cannot be loaded either.
    assert reach(report, "esp4_offload") is Reach.NONE


@pytest.mark.parametrize(
    ("mode", "group", "who"),
    [
        (0o666, "root", Reach.UNPRIVILEGED),
        (0o660, "kvm", Reach.DEVICE),
        (0o600, "root", Reach.ROOT),
        (None, "", Reach.ROOT),
    ],
)
def test_the_mode_of_a_node_says_who(stock: Stock, mode: int | None, group: str, who: Reach) -> None:
    node = DeviceNode("vhost-net", ModuleName("vhost_net"), "char-major-10-238", mode, group)
    assert reach(surface(stock, nodes=(node,)), "vhost_net") is who


def test_a_node_that_cannot_be_looked_at_counts_as_open(stock: Stock) -> None:
    node = DeviceNode("vhost-net", ModuleName("vhost_net"), "char-major-10-238", mode_known=False)
    assert reach(surface(stock, nodes=(node,)), "vhost_net") is Reach.DEVICE
