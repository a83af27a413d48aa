# SPDX-License-Identifier: LGPL-2.1-or-later
"""What of this system needs modules, source by source: devices and the drivers below them, mounts, swap, encrypted volumes, units."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from kmodd.kernel.files import listdir, read_if_there, read_text, readlink
from kmodd.kernel.proc.facts import present_aliases
from kmodd.model.surface import Want

_DIGITS = re.compile(r"[0-9p]+$")
_DEPTH_MAX = 32
"""Devices below each other, and stacked on each other."""
_VIRTUAL = {"dm-": "dm_mod", "md": "md_mod"}
"""Block devices without a driver, whose module is not called as they are."""
_CRYPT = "CRYPT-"
_ATTRIBUTES = 4096
_DEVICE_MAX = 480
"""Letters of an alias that are shown."""
FLOOR = frozenset({"/", "/usr", "/boot", "/boot/efi", "/efi", "/etc", "/var"})
"""Mount points without which the system does not start."""
_ESCAPE = re.compile(r"\\([0-7]{3})")
_NO_TYPE = frozenset({"", "none", "auto", "swap", "bind"})
_SIZE_MAX = 16 << 20
# What cryptsetup needs to open a LUKS or plain volume of the usual kinds; a volume that is not open does not say.
_CIPHERS = ("dm_crypt", "crypto-aes", "crypto-xts", "crypto-cbc", "crypto-essiv", "crypto-sha256", "crypto-sha512")
_FOLDERS = (
    "etc/systemd/system",
    "run/systemd/system",
    "run/systemd/generator",
    "run/systemd/generator.late",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
)
_UNIT_MAX = 1 << 16
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
_KINDS = frozenset({".service", ".mount", ".automount", ".socket", ".target", ".path", ".timer", ".conf"})


def below(device: Path, sys: Path, evidence: str) -> Iterator[Want]:
    """The drivers of a device and of all that it hangs on, by name and by what would load them in another kernel."""
    path = Path(os.path.realpath(device))
    for _ in range(_DEPTH_MAX):
        if path == sys or sys not in path.parents:
            return
        driver = readlink(path / "driver/module")
        if driver:
            yield Want(driver.rpartition("/")[2], evidence, floor=True)
        alias = read_text(path / "modalias", _ATTRIBUTES)
        if alias:
            yield Want(alias, evidence, floor=True)
        path = path.parent


class BlockDevices:
    """Names and stacks of block devices below a root folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._sys = Path(os.path.realpath(root / "sys"))
        self._block = root / "sys/class/block"

    def name_of(self, number: str, source: str) -> str:
        """The device of a mount by its number `MAJOR:MINOR`, or by its path where the file system has a separate number."""
        link = readlink(self._root / "sys/dev/block" / number)
        if link:
            return link.rpartition("/")[2]
        name = source.rpartition("/")[2] if source.startswith("/dev/") else ""
        if name and (self._block / name).exists():
            return name
        # /dev/mapper/NAME: the daemon's own /dev does not have it.
        mapped = (dm for dm in listdir(self._block) if dm.startswith("dm-"))
        return next((dm for dm in mapped if name and read_text(self._block / dm / "dm/name") == name), "")

    def stack(self, name: str, evidence: str) -> Iterator[Want]:
        """What the device and those below it need."""
        left, visited = [name], set[str]()
        while left and len(visited) < _DEPTH_MAX:
            current = left.pop()
            if current in visited:
                continue
            visited.add(current)
            folder = self._block / current
            yield from self._layer(folder, current, evidence)
            yield from below(folder, self._sys, evidence)
            left += listdir(folder / "slaves")
            # A partition has the slaves of its disk.
            disk = Path(os.path.realpath(folder)).parent
            left += [disk.name] if (disk / "slaves").is_dir() else []

    def _layer(self, folder: Path, name: str, evidence: str) -> Iterator[Want]:
        if "/virtual/" in os.path.realpath(folder):
            kind = next((module for start, module in _VIRTUAL.items() if name.startswith(start)), "")
            yield Want(kind or _DIGITS.sub("", name), evidence, floor=True)
        level = read_text(folder / "md/level")
        if level:
            yield Want(f"md-{level}", evidence, floor=True)
        uuid = read_text(folder / "dm/uuid") or ""
        if not uuid and not name.startswith("dm-"):
            return
        # Which targets a table has needs the right to ask device-mapper: all that are there count.
        for module in listdir(self._root / "sys/module"):
            if module.startswith("dm_") and (self._root / "sys/module" / module / "initstate").exists():
                yield Want(module, evidence, floor=True)
        if uuid.startswith(_CRYPT):
            yield Want("dm_crypt", evidence, floor=True)
            for algorithm in _algorithms(self._root):
                yield Want(algorithm, evidence, floor=True)


def _algorithms(root: Path) -> Iterator[str]:
    """Modules of the algorithms that the kernel has now: which of them a volume uses only root can read."""
    text = read_text(root / "proc/crypto", 1 << 20) or ""
    modules = (line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("module"))
    yield from dict.fromkeys(module for module in modules if module != "kernel")


def devices(root: Path) -> Iterator[Want]:
    """The aliases of all devices that are there."""
    yield from (Want(alias, f"device {alias[:_DEVICE_MAX]}") for alias in dict.fromkeys(present_aliases(root)))


def consoles(root: Path) -> Iterator[Want]:
    """Drivers of keyboards and other input, of the screen and of the consoles that the kernel writes to."""
    sys = Path(os.path.realpath(root / "sys"))
    for folder, start, what in (
        ("input", "input", "input device"),
        ("graphics", "fb", "screen"),
        ("drm", "card", "screen"),
    ):
        for name in listdir(root / "sys/class" / folder):
            if name.startswith(start) and "-" not in name:
                yield from below(root / "sys/class" / folder / name, sys, f"{what} {name}")
    for name in (read_text(root / "sys/class/tty/console/active") or "").split():
        yield from below(root / "sys/class/tty" / name, sys, f"console {name}")


def interfaces(root: Path, kinds: Callable[[], Mapping[str, str]]) -> Iterator[Want]:
    """Kinds of interfaces; of those that are up, and so of the default route and of every session, the drivers as a floor.

    OSError where the kernel cannot be queried.
    """
    sys = Path(os.path.realpath(root / "sys"))
    of_kind = kinds()
    for name in listdir(root / "sys/class/net"):
        folder = root / "sys/class/net" / name
        if name == "lo":
            continue
        up = (read_text(folder / "operstate") or "") not in ("down", "notpresent", "lowerlayerdown")
        evidence = f"interface {name}{', which is up' if up else ''}"
        if name in of_kind:
            yield Want(f"rtnl-link-{of_kind[name]}", evidence, floor=up)
            yield Want(of_kind[name], evidence, floor=up)
        if up:
            yield from below(folder, sys, evidence)
            yield from below(folder / "device", sys, evidence)
            yield from below(folder / "phydev", sys, evidence)


def mounts(root: Path) -> Iterator[Want]:
    """What is mounted in the system's own namespace; OSError where that cannot be read."""
    blocks = BlockDevices(root)
    for line in _text(root / "proc/1/mountinfo", required=True).splitlines():
        front, _, back = line.partition(" - ")
        fields, rest = front.split(), back.split(" ")
        if len(fields) < 5 or len(rest) < 2:
            continue
        point, number, type_, source = _unescaped(fields[4]), fields[2], rest[0], _unescaped(rest[1])
        options = rest[2] if len(rest) > 2 else ""
        yield from _file_system(type_, options, f"mounted at {point}", floor=point in FLOOR)
        if point in FLOOR:
            name = blocks.name_of(number, source)
            if name:
                yield from blocks.stack(name, f"{name}, mounted at {point}")


def swaps(root: Path) -> Iterator[Want]:
    """What the swap areas in use lie on."""
    blocks = BlockDevices(root)
    for line in _text(root / "proc/swaps").splitlines()[1:]:
        path, kind, *_ = [*line.split(), "", ""]
        if kind == "partition":
            name = blocks.name_of("", _unescaped(path))
            yield from blocks.stack(name, f"swap area {name}")


def fstab(root: Path) -> Iterator[Want]:
    """What the administrator's table mounts, now or on request."""
    for number, line in enumerate(_text(root / "etc/fstab").splitlines(), 1):
        fields = line.split()
        if len(fields) < 3 or fields[0].startswith("#"):
            continue
        options = fields[3] if len(fields) > 3 else ""
        for type_ in fields[2].split(","):
            point = _unescaped(fields[1])
            floor = point in FLOOR and "noauto" not in options.split(",")
            yield from _file_system(type_, options, f"/etc/fstab, line {number}: {point}", floor=floor)


def crypttab(root: Path) -> Iterator[Want]:
    """Encrypted volumes, open or not."""
    for number, line in enumerate(_text(root / "etc/crypttab").splitlines(), 1):
        fields = line.split()
        if len(fields) < 2 or fields[0].startswith("#"):
            continue
        evidence = f"/etc/crypttab, line {number}"
        yield from (Want(request, evidence) for request in _CIPHERS)
        options = fields[3].split(",") if len(fields) > 3 else []
        for option in options:
            name, _, value = option.partition("=")
            if name in ("cipher", "hash"):
                yield from (Want(f"crypto-{part}", evidence) for part in re.split(r"[-:]", value) if part)
            elif name.startswith("integrity"):
                yield Want("dm_integrity", evidence)


def _file_system(type_: str, options: str, evidence: str, *, floor: bool) -> Iterator[Want]:
    type_ = type_.partition(".")[0]  # fuse.sshfs
    if type_ in _NO_TYPE:
        return
    yield Want(f"fs-{type_}", evidence, floor=floor)
    yield Want(type_, evidence, floor=floor)
    for option in options.split(","):
        name, _, value = option.partition("=")
        if name in ("iocharset", "nls") and value:
            yield Want(f"nls_{value}", evidence, floor=floor)
        elif name == "codepage" and value:
            yield Want(f"nls_cp{value.removeprefix('cp')}", evidence, floor=floor)
    if type_ in ("vfat", "msdos"):
        # The tables of names that the kernel of Debian and most others take without an option.
        yield from (
            Want(table, evidence, floor=floor) for table in ("nls_cp437", "nls_ascii", "nls_iso8859_1", "nls_utf8")
        )


def _text(path: Path, *, required: bool = False) -> str:
    """Empty where there is no such file; OSError where it cannot be read."""
    # Some systems have a link in place of the file.
    data = read_if_there(os.path.realpath(path), _SIZE_MAX)
    if data is None and required:
        raise FileNotFoundError(2, "no such file", str(path))
    return (data or b"").decode("utf-8", "replace")


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda escape: chr(int(escape[1], 8)), text)


def units(root: Path) -> Iterator[Want]:
    """Modules that unit files name: `modprobe@NAME.service`, commands with modprobe, types of mounts; OSError for a folder."""
    files = 0
    for place in _FOLDERS:
        folder = root / place
        if folder.is_symlink() or not folder.is_dir():
            continue
        for name in sorted(path.name for path in folder.iterdir()):
            files += 1
            if files > _FILES_MAX:
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
    data = read_if_there(os.path.realpath(path), _UNIT_MAX) if path.suffix in _KINDS and not path.is_dir() else None
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
