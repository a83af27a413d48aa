# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where the kernel asks for modules on its own: the form of each request, who can cause it, and what has to be there first.

Read in the sources of Linux 6.1 and 6.12, the function at each row; `tests/system/test_surface.py` tries every one of them as an
unprivileged user. Requests are compared as libkmod spells them, with `_` for `-`. Text in a request that the caller chooses
leads to names of modules as well as to aliases: `bind(AF_ALG, "aead")` asks for `algif-aead`, which is a module's name.
"""

import re
from collections.abc import Callable
from dataclasses import field

from kmodd.fast_dataclass import dataclass
from kmodd.model.surface import Gate, Reach

Needs = tuple[tuple[str, ...], ...]
"""Groups of requests: of each group one must have been answered, that is, a module that it stands for is there."""

_NAMESPACE = (Gate.USERNS_CLONE, Gate.USER_NAMESPACES, Gate.APPARMOR_USERNS)
_NETWORK = (*_NAMESPACE, Gate.NET_NAMESPACES)
_MOUNT = (*_NAMESPACE, Gate.MOUNT_NAMESPACES)

ALWAYS_THERE = frozenset({2, 16})
"""Families that are part of any kernel with a network, and have no alias: AF_INET, AF_NETLINK."""
_PROTOCOLS = frozenset({1, 2, 6, 17, 136})
"""Protocols of AF_INET that are part of the kernel (inet_init() in net/ipv4/af_inet.c, udplite4_register())."""
_RAW = 255
_NO_EXECUTABLE_FORMATS = (6, 14)
"""The release from which execve(2) asks for no module (search_binary_handler() in fs/exec.c)."""


def _nothing(_: re.Match[str]) -> Needs:
    return ()


@dataclass(frozen=True, slots=True)
class Kind:
    """A place where the kernel asks for modules."""

    name: str
    form: re.Pattern[str]
    """The whole request, spelled with `_`."""
    reach: Reach
    how: str
    """What the user does, as a clause."""
    gates: tuple[Gate, ...] = ()
    needs: Callable[[re.Match[str]], Needs] = field(default=_nothing)
    prefix: str = ""
    """What the kernel puts before the caller's text, where that is written with `-`."""

    def request(self, text: str) -> str:
        """The request as the kernel spells it; `text` is an alias, or the name of a module that a request leads to as well."""
        return self.prefix + text[len(self.prefix) :]


def _kind(
    name: str,
    form: str,
    reach: Reach,
    how: str,
    *,
    gates: tuple[Gate, ...] = (),
    needs: Needs | Callable[[re.Match[str]], Needs] = (),
    prefix: str = "",
) -> Kind:
    # A table of needs may take up the groups of the form: "net-pf-{1}".
    if callable(needs):
        return Kind(name, re.compile(form), reach, how, gates, needs, prefix)
    return Kind(
        name,
        re.compile(form),
        reach,
        how,
        gates,
        lambda match: tuple(tuple(each.format("", *match.groups()) for each in group) for group in needs),
        prefix,
    )


def _diagnostics(match: re.Match[str]) -> Needs:
    """sock_load_diag_module() in net/core/sock.c: the family, and of AF_INET the protocol, must be registered."""
    family, protocol = int(match[1] or match[3]), match[2] and int(match[2])
    # inet_diag asks for its protocols, for both families by the number of AF_INET.
    needs: list[tuple[str, ...]] = [("net-pf-16-proto-4-type-2",)] if protocol else [(f"net-pf-{family}",)]
    if protocol and family == 2 and protocol < _RAW and protocol not in _PROTOCOLS:
        types = (f"net-pf-2-proto-{protocol}-type-{kind}" for kind in range(1, 7))
        needs.append((f"net-pf-2-proto-{protocol}", *types))
    return tuple(needs)


_ALGORITHM_TYPES = ("algif-aead", "algif-hash", "algif-rng", "algif-skcipher", "algif-akcipher")
_NETFILTER, _TABLES = "net-pf-16-proto-12", "nfnetlink-subsys-10"
_A, _B = Reach.UNPRIVILEGED, Reach.USERNS

KINDS: tuple[Kind, ...] = (
    # --- any user -----------------------------------------------------------------------------------------------------
    # __sock_create() in net/socket.c; af_inet.c, af_inet6.c, pppox.c and others for protocols; netlink_create(); ctrl_getfamily().
    _kind("generic-netlink", r"net_pf_16_proto_16_family_(.+)", _A, "asks generic netlink for the family"),
    _kind(
        "socket-diagnostics",
        r"net_pf_16_proto_4_type_(?:(2)_(\d+)|(\d+))",
        _A,
        "asks for sockets as ss(8) does",
        needs=_diagnostics,
    ),
    _kind("netlink-protocol", r"net_pf_16_proto_(\d+)", _A, "opens a netlink socket of the protocol"),
    _kind(
        "socket-protocol",
        r"net_pf_(\d+)_proto_(\d+)(?:_type_(\d+))?",
        _A,
        "opens a socket of the protocol",
        needs=(("net-pf-{1}",),),
    ),
    _kind("socket-family", r"net_pf_(\d+)", _A, "opens a socket of the family"),
    _kind("can-protocol", r"can_proto_(\d+)", _A, "opens a CAN socket", needs=(("net-pf-29",),)),
    _kind("bluetooth-protocol", r"bt_proto_(\d+)", _A, "opens a Bluetooth socket", needs=(("net-pf-31",),)),
    # alg_bind() in crypto/af_alg.c; crypto_larval_lookup() in crypto/api.c.
    _kind("algorithm-type", r"algif_(.+)", _A, "binds an AF_ALG socket", needs=(("net-pf-38",),), prefix="algif-"),
    _kind(
        "algorithm",
        r"crypto_(.+)",
        _A,
        "binds an AF_ALG socket to it",
        needs=(("net-pf-38",), _ALGORITHM_TYPES),
        prefix="crypto-",
    ),
    # tty_ldisc_get() in drivers/tty/tty_ldisc.c.
    _kind(
        "line-discipline",
        r"tty_ldisc_(\d+)",
        _A,
        "sets the line discipline of a terminal",
        gates=(Gate.LDISC_AUTOLOAD,),
    ),
    _kind("executable-format", r"binfmt_([0-9a-f]{4})", _A, "runs a file of the format"),
    # get_cb_table() in drivers/infiniband/core/netlink.c, nldev_get_chardev() in nldev.c.
    _kind(
        "rdma",
        r"rdma_(?:netlink_subsys|client)_(.+)",
        _A,
        "sends a message of RDMA's netlink protocol",
        needs=(("net-pf-16-proto-20",),),
    ),
    # sock_ioctl() in net/socket.c; do_vcc_ioctl() in net/atm/ioctl.c; rds_trans_get() in net/rds/transport.c.
    _kind("socket-ioctl", r"bridge|8021q", _A, "calls ioctl(2) on a socket"),
    _kind(
        "socket-ioctl",
        r"mpoa|clip|lec|pppoatm|br2684",
        _A,
        "calls ioctl(2) on an ATM socket",
        needs=(("net-pf-8", "net-pf-20"),),
    ),
    _kind("rds-transport", r"rds_(?:tcp|rdma)", _A, "sets the transport of an RDS socket", needs=(("net-pf-21",),)),
    # --- any user with a namespace ------------------------------------------------------------------------------------
    # fsopen(2): get_fs_type() in fs/filesystems.c, before FS_USERNS_MOUNT is looked at.
    _kind("file-system", r"fs_(.+)", _B, "opens the file system type by fsopen(2)", gates=_MOUNT, prefix="fs-"),
    # load_nls_default() in fs/nls/nls_base.c, which cifs calls for fsopen(2); the default of Debian's kernels.
    _kind("character-set", r"nls_utf8", _B, "opens the file system type cifs by fsopen(2)", gates=_MOUNT),
    # nfnetlink_rcv_msg() in net/netfilter/nfnetlink.c; nf_tables_api.c.
    _kind(
        "netfilter-subsystem",
        r"nfnetlink_subsys_(\d+)",
        _B,
        "sends a netfilter message",
        gates=_NETWORK,
        needs=((_NETFILTER,),),
    ),
    _kind(
        "nftables",
        r"nft_(?:expr_.+|obj_\d+|chain_\d+_.+)",
        _B,
        "adds a rule to nftables",
        gates=_NETWORK,
        needs=((_TABLES,),),
    ),
    _kind("nftables", r"nf_flowtable_(\d+)", _B, "adds a flow table to nftables", gates=_NETWORK, needs=((_TABLES,),)),
    _kind(
        "nftables",
        r"nf_conntrack_bridge",
        _B,
        "matches connections on a bridge in nftables",
        gates=_NETWORK,
        needs=((_TABLES,), ("nft-expr-ct",)),
    ),
    _kind(
        "netfilter-log",
        r"nf_logger_(\d+)_(\d+)",
        _B,
        "adds a rule that logs",
        gates=_NETWORK,
        needs=(("nft-expr-log", "ipt_LOG", "ipt_NFLOG"),),
    ),
    _kind(
        "connection-helper",
        r"nfct_helper_(.+)",
        _B,
        "adds a helper of connection tracking",
        gates=_NETWORK,
        needs=(("nft-obj-3", "ipt_CT"),),
    ),
    _kind(
        "connection-helper",
        r"ip_nat_(.+)",
        _B,
        "adds a helper of address translation",
        gates=_NETWORK,
        needs=(("nfct-helper-{1}",),),
    ),
    # textsearch_prepare() in lib/textsearch.c, which a helper, a match and an extended match call.
    _kind(
        "text-search",
        r"ts_(.+)",
        _B,
        "adds a rule that searches text",
        gates=_NETWORK,
        needs=(("ematch-kind-5", "ipt_string", "nfct-helper-amanda"),),
    ),
    # xt_request_find_match() in net/netfilter/x_tables.c, from nft_compat and the tables' own socket options.
    _kind(
        "xtables",
        r"(?:ip6?|arp|eb)t_(.+)",
        _B,
        "uses an extension of iptables",
        gates=_NETWORK,
        needs=(("nfnetlink-subsys-11", "ip_tables", "ip6_tables", "arp_tables", "ebtables"),),
    ),
    _kind("xtables", r"iptable_(.+)", _B, "opens a table of iptables", gates=_NETWORK, needs=(("ip_tables",),)),
    _kind("xtables", r"ip6table_(.+)", _B, "opens a table of ip6tables", gates=_NETWORK, needs=(("ip6_tables",),)),
    _kind("xtables", r"arptable_(.+)", _B, "opens a table of arptables", gates=_NETWORK, needs=(("arp_tables",),)),
    _kind("xtables", r"ebtable_(.+)", _B, "opens a table of ebtables", gates=_NETWORK, needs=(("ebtables",),)),
    # find_set_type() in net/netfilter/ipset/ip_set_core.c.
    _kind("ip-set", r"ip_set_(.+)", _B, "makes a set of the type", gates=_NETWORK, needs=(("nfnetlink-subsys-6",),)),
    # rtnl_newlink() in net/core/rtnetlink.c, lwtunnel_valid_encap_type(), xfrm_get_type() in net/xfrm/xfrm_state.c.
    _kind("link-kind", r"rtnl_link_(.+)", _B, "adds an interface of the kind", gates=_NETWORK, prefix="rtnl-link-"),
    _kind("tunnel-encapsulation", r"rtnl_lwt_(.+)", _B, "adds a route with the encapsulation", gates=_NETWORK),
    _kind(
        "ipsec",
        r"xfrm_(?:type|offload)_(\d+)_(\d+)",
        _B,
        "adds an IPsec state",
        gates=_NETWORK,
        needs=(("net-pf-16-proto-6",),),
    ),
    # qdisc_create(), tcf_proto_lookup_ops(), tc_action_load_ops(), tcf_em_validate(); by name before Linux 6.8.
    _kind(
        "traffic-control",
        r"(?:net_)?(?:sch|cls|act)_(.+)",
        _B,
        "adds a queueing discipline, filter or action",
        gates=_NETWORK,
    ),
    _kind(
        "traffic-control",
        r"ematch_kind_(\d+)",
        _B,
        "adds an extended match to a filter",
        gates=_NETWORK,
        needs=(("net-cls-basic", "cls_basic", "net-cls-flow", "cls_flow", "net-cls-cgroup", "cls_cgroup"),),
    ),
    _kind(
        "traffic-control",
        r"ife_meta_(.+)",
        _B,
        "adds metadata to an action",
        gates=_NETWORK,
        needs=(("net-act-ife", "act_ife"),),
    ),
    # ip_vs_scheduler_get(), ovs_vport_lookup(), l2tp_nl_cmd_session_create(): all allow the capability in a namespace.
    _kind(
        "ipvs-scheduler",
        r"ip_vs_(.+)",
        _B,
        "adds a virtual service",
        gates=_NETWORK,
        needs=(("net-pf-16-proto-16-family-IPVS",),),
    ),
    _kind(
        "openvswitch-port",
        r"vport_type_(\d+)",
        _B,
        "adds a port to Open vSwitch",
        gates=_NETWORK,
        needs=(("net-pf-16-proto-16-family-ovs_vport",),),
    ),
    _kind(
        "l2tp-session",
        r"net_l2tp_type_(\d+)",
        _B,
        "adds a session of L2TP",
        gates=_NETWORK,
        needs=(("net-pf-16-proto-16-family-l2tp",),),
    ),
)

HARDWARE = "device"
NODE = "device-node"
NAME = "name"
_BUS = re.compile(r"[A-Za-z0-9_-]+\*?:")
_NO_BUS = ("devname:", "symbol:", "ip_set_", "vfio_pci:")
"""Aliases with a colon that no device has."""


def spelled(request: str) -> str:
    """A request as libkmod compares it."""
    return request.replace("-", "_")


def kind_of(request: str, release: tuple[int, ...]) -> tuple[Kind, re.Match[str]] | None:
    """Where a kernel asks for this, if it does; the first row that fits."""
    text = spelled(request)
    for kind in KINDS:
        match = kind.form.fullmatch(text)
        if match is not None:
            if kind.name == "executable-format" and release >= _NO_EXECUTABLE_FORMATS:
                return None
            return kind, match
    return None


def is_hardware(alias: str) -> bool:
    """Tell whether udev has the alias from a device, as its MODALIAS."""
    return _BUS.match(alias) is not None and not alias.startswith(_NO_BUS)


def how(kind: str, request: str) -> str:
    """What a user does on this route, as a clause."""
    text = spelled(request)
    return next((each.how for each in KINDS if each.name == kind and each.form.fullmatch(text)), "")
