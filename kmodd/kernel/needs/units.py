# SPDX-License-Identifier: LGPL-2.1-or-later
"""Modules that units of systemd name or mount, and those of container runtimes that are installed."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from kmodd.kernel.files import listdir, read_if_there
from kmodd.model.surface_policy import Want

_FOLDERS = (
    "etc/systemd/system",
    "run/systemd/system",
    "run/systemd/generator",
    "run/systemd/generator.late",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
)
_SIZE_MAX = 1 << 16
_FILES_MAX = 8192
_INSTANCE = re.compile(r"modprobe@([A-Za-z0-9_\\:.-]+)\.service")
_COMMAND = re.compile(r"(?:^|[\s/=@+!-])modprobe((?:\s+[^\s;&|\"']+)+)")
_TYPE = re.compile(r"^Type\s*=\s*(\S+)", re.MULTILINE)
_HEX = re.compile(r"\\x([0-9a-f]{2})")
RUNTIMES = ("containerd", "crio", "docker", "dockerd", "incusd", "k3s", "kubelet", "lxc-start", "lxd", "podman")
_PROGRAMS = ("usr/bin", "usr/sbin", "usr/local/bin", "usr/local/sbin", "bin")
# What Docker's check-config.sh, kube-proxy, the CNI plugins and netavark use on a stock kernel.
CONTAINERS = (
    "overlay", "fuse", "tun", "veth", "bridge", "br_netfilter", "vxlan", "macvlan", "ipvlan", "macvtap", "dummy", "ip_tables",
    "ip6_tables", "iptable_filter", "iptable_nat", "iptable_mangle", "iptable_raw", "ip6table_filter", "ip6table_nat",
    "ip6table_mangle", "nf_tables", "nft_compat", "nft_chain_nat", "nft_ct", "nft_masq", "nft_nat", "nft_redir", "nft_reject",
    "nft_reject_inet", "nft_reject_ipv4", "nft_reject_ipv6", "nft_fib", "nft_fib_inet", "nft_fib_ipv4", "nft_fib_ipv6", "nft_limit",
    "nft_log", "nft_numgen", "nft_hash", "nft_counter", "nf_conntrack", "nf_conntrack_netlink", "nf_nat", "nfnetlink", "nfnetlink_log",
    "xt_addrtype", "xt_comment", "xt_conntrack", "xt_mark", "xt_MASQUERADE", "xt_multiport", "xt_nat", "xt_physdev",
    "xt_recent", "xt_REDIRECT", "xt_set", "xt_socket", "xt_statistic", "xt_tcpudp", "xt_TPROXY", "xt_u32", "ipt_REJECT",
    "ip6t_REJECT", "xt_limit", "xt_LOG", "xt_NFLOG", "xt_ipvs", "xt_bpf", "ip_set", "ip_set_hash_ip", "ip_set_hash_net",
    "ip_set_hash_ipport", "ip_set_hash_ipportip", "ip_set_hash_ipportnet", "ip_set_bitmap_port", "ip_vs", "ip_vs_rr",
    "ip_vs_wrr", "ip_vs_sh", "ip_vs_lc", "sch_ingress", "sch_htb", "sch_tbf", "sch_fq", "sch_fq_codel", "cls_bpf", "act_bpf",
    "bpfilter", "inet_diag", "tcp_diag", "udp_diag",
)  # fmt: skip


def units(root: Path) -> Iterator[Want]:
    """Modules that unit files name: `modprobe@NAME.service`, commands with modprobe, types of mounts; OSError for a folder."""
    seen = 0
    for place in _FOLDERS:
        folder = root / place
        if folder.is_symlink() or not folder.is_dir():
            continue
        for name in sorted(path.name for path in folder.iterdir()):
            seen += 1
            if seen > _FILES_MAX:
                raise OSError(7, f"more than {_FILES_MAX} units", str(folder))
            path = folder / name
            for linked in [name, *(listdir(path) if path.suffix in (".wants", ".requires", ".upholds") else ())]:
                instance = _INSTANCE.fullmatch(linked)
                if instance is not None and instance[1]:
                    yield Want(_plain(instance[1]), f"unit {linked}")
            drop_ins = [path / inner for inner in listdir(path)] if path.suffix == ".d" else []
            for file in (path, *drop_ins):
                yield from _unit(file, f"/{file.relative_to(root)}")


def _unit(path: Path, shown: str) -> Iterator[Want]:
    data = read_if_there(os.path.realpath(path), _SIZE_MAX) if path.suffix in _KINDS and not path.is_dir() else None
    text = (data or b"").decode("utf-8", "replace")
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith(("#", ";")))
    for instance in _INSTANCE.finditer(lines):
        yield Want(_plain(instance[1]), shown)
    for command in _COMMAND.finditer(lines):
        words = command[1].split()
        if "-r" not in words and "--remove" not in words:
            yield from (Want(word, shown) for word in words if not word.startswith(("-", "$", "%")) and "=" not in word)
    if path.suffix == ".mount":
        yield from (Want(f"fs-{type_[1]}", shown) for type_ in _TYPE.finditer(lines))
    if path.suffix == ".automount":
        yield Want("fs-autofs", shown)
        yield Want("autofs4", shown)


_KINDS = frozenset({".service", ".mount", ".automount", ".socket", ".target", ".path", ".timer", ".conf"})


def containers(root: Path) -> Iterator[Want]:
    """What the container runtimes that are installed may need at any time."""
    for runtime in RUNTIMES:
        if any((root / place / runtime).exists() for place in _PROGRAMS):
            yield from (Want(module, f"{runtime} is installed") for module in CONTAINERS)
            return


def _plain(instance: str) -> str:
    """Undo systemd's escaping of an instance."""
    return _HEX.sub(
        lambda escape: chr(int(escape[1], 16)), instance.replace("-", "/") if "\\" in instance else instance
    )
