# SPDX-License-Identifier: LGPL-2.1-or-later
"""Similar names for an unknown one, for "did you mean", and hints for several names."""

import re
from collections.abc import Collection, Iterable, Iterator, Set

MATCHES = 3
LENGTH_MAX = 64
"""Characters; longer texts are no mistyped names, and comparing them takes the square of their length."""

_SEVERAL = re.compile(r"[\s,;]+")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,54}")
_FILE = re.compile(r"\.(?:ko|o)(?:\.(?:gz|xz|zst))?\Z")
_UNIT = re.compile(r"(?<=[a-z])[0-9]+(?:n[0-9]+)?(?:p[0-9]+)?\Z")
# Names that modules had in earlier kernels, and what took their place (git log of Linux, the commit that renamed or merged it).
_RENAMED = {
    "aufs": "overlay",
    "ext3": "ext4",
    "fuseblk": "fuse",
    "ieee80211": "cfg80211",
    "ipchains": "ip_tables",
    "nf_conntrack_ipv4": "nf_conntrack",
    "nf_conntrack_ipv6": "nf_conntrack",
    "nf_nat_ipv4": "nf_nat",
    "nf_nat_ipv6": "nf_nat",
    "nf_nat_masquerade_ipv4": "nf_nat",
    "nf_nat_masquerade_ipv6": "nf_nat",
    "nf_tables_ipv4": "nf_tables",
    "nf_tables_ipv6": "nf_tables",
    "nft_chain_nat_ipv4": "nft_chain_nat",
    "nft_chain_nat_ipv6": "nft_chain_nat",
    "nft_masq_ipv4": "nft_masq",
    "nft_masq_ipv6": "nft_masq",
    "overlayfs": "overlay",
    "rtc": "rtc_cmos",
    "smbfs": "cifs",
}
# What people call a module whose name is put together otherwise: the program that uses it, its subsystem, its interfaces.
_CALLED = {
    "802.1q": "8021q",
    "aes_ni": "aesni_intel",
    "bridge_netfilter": "br_netfilter",
    "bridge_nf": "br_netfilter",
    "device_mapper": "dm_mod",
    "dm": "dm_mod",
    "fq": "sch_fq",
    "hyperv": "hv_vmbus",
    "ip6tables": "ip6_tables",
    "ipset": "ip_set",
    "iptables": "ip_tables",
    "ipvs": "ip_vs",
    "iscsi": "iscsi_tcp",
    "luks": "dm_crypt",
    "lvm": "dm_mod",
    "nfs3": "nfsv3",
    "nftables": "nf_tables",
    "ntfs": "ntfs3",
    "packet": "af_packet",
    "rr": "ip_vs_rr",
    "smb": "cifs",
    "sr": "sr_mod",
    "vlan": "8021q",
    "wg": "wireguard",
}
# (beginning of the former name, of the present one): the connection tracking of IPv4 became that of all families in 2.6.20,
# and the matches and targets of iptables and ip6tables became those of x_tables.
_MOVED = (("ip_conntrack", "nf_conntrack"), ("ip_nat", "nf_nat"), ("ipt_", "xt_"), ("ip6t_", "xt_"), ("arpt_", "xt_"))
# What people leave out, who know a thing by the name that its own tools use: `bbr`, `fq_codel`, `MASQUERADE`, `utf8`.
_PREFIXES = (
    "tcp_", "sch_", "cls_", "act_", "nf_", "xt_", "em_", "nf_conntrack_", "nft_", "ip_", "ipt_", "ip_vs_", "ebt_", "snd_",
    "snd_hda_", "nls_", "dm_", "usb_", "hid_", "i2c_", "crypto_", "rtc_", "can_", "vfio_", "iscsi_", "nvme_", "kvm_",
)  # fmt: skip
_SUFFIXES = ("_generic", "_mod", "_core", "ing", "fs", "_pci", "_drv", "_common", "_intel")


def near(name: str, names: Iterable[str]) -> tuple[str, ...]:
    """Find at most three names like this one, best first.

    Only names of about the same length that share the first letter or the last three are compared: a thousand modules
    then cost about a millisecond instead of thirty.
    """
    if len(name) > LENGTH_MAX:
        return ()
    # Imported here because only a mistyped name needs it.
    from difflib import get_close_matches

    tail = name[-3:]
    first: list[str] = []
    last: list[str] = []
    for other in names:
        if abs(len(other) - len(name)) > 3:
            continue
        if other[:1] == name[:1]:
            first.append(other)
        elif other[-3:] == tail:
            last.append(other)
    # People seldom miss the first letter: of usbcore, ib_core is no other spelling.
    last = get_close_matches(name, last, n=MATCHES, cutoff=0.75)
    return tuple(get_close_matches(name, first + last, n=MATCHES, cutoff=0.7))


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Spell the question, or an empty text when nothing is close."""
    return _question(near(name, names))


def another_name(name: str, modules: Collection[str]) -> str:
    """The module that people mean who call it by a file name, in capitals, by a former name, or without its prefix.

    Empty where it is none of that, or may be several. `modules` are all there are, with `_`; a set is fastest.
    """
    if len(name) > 2 * LENGTH_MAX:
        return ""
    name_set = modules if isinstance(modules, Set) else frozenset(modules)
    plain = _plain(name)
    return next((other for other in _other_names(plain) if other != name and other in name_set), "")


def is_module_file(text: str) -> bool:
    """Tell whether it is the path of a module's file: `./loop.ko`, `/lib/modules/…/loop.ko.xz`."""
    return "/" in text and bool(_FILE.search(text))


def file_module(path: str) -> str:
    """The name that a module's file stands for; the text itself where it is no file's name."""
    return _plain(path) if _FILE.search(path) else path


def is_spelling(written: str, module: str) -> bool:
    """Tell whether both are the same name, written as a file's or in other letters."""
    return _plain(written).lower() == module.lower()


def which_module(name: str, modules: Collection[str]) -> str:
    """Say which module may be meant by the name of none, or that it is the name of several; empty when nothing is close."""
    name_set = modules if isinstance(modules, Set) else frozenset(modules)
    meant = another_name(name, name_set)
    if meant:
        return _question((meant,))
    words = several_names(name)
    if words:
        return load_several(words)
    return did_you_mean(name.replace("-", "_"), modules)


def load_several(names: Iterable[str]) -> str:
    """Spell the command that loads several modules, of which the names are such as `several_names` answers."""
    return f"load several modules with: printf 'load %s\\n' {' '.join(names)} | kmodctl batch -"


def several_names(text: str) -> tuple[str, ...]:
    """Names of modules in one text, where there is more than one, between blanks or commas; empty otherwise."""
    if len(text) > 1024:
        return ()
    words = tuple(word for word in _SEVERAL.split(text) if word)
    return words if len(words) > 1 and all(map(_WORD.fullmatch, words)) else ()


def _plain(name: str) -> str:
    """Without what surrounds a name: a folder and an ending where it is a file's, quotes, and signs of punctuation behind it."""
    name = name.strip(" \t\"'").rstrip(",;:\\")
    if name.startswith(("/", "./", "../")) or _FILE.search(name):
        name = _FILE.sub("", name.rpartition("/")[2])
    return name.replace("-", "_")


def _other_names(plain: str) -> Iterator[str]:
    lower = plain.lower()
    yield from (plain, lower)
    unit = _UNIT.sub("", lower)  # of an interface or a device: dummy0, bond0, sr0, nvme0n1p2
    for called in dict.fromkeys((lower, unit)):
        yield from (table[called] for table in (_RENAMED, _CALLED) if called in table)
    for before, now in _MOVED:
        if lower.startswith(before):
            yield now + plain[len(before) :]
            yield now + lower[len(before) :]
            yield now + plain[len(before) :].upper()
    # Two-letter names match too much: lp is a module, and tcp_lp another.
    for spelled in dict.fromkeys((plain, lower)) if len(plain) > 2 else ():
        yield from (spelled + suffix for suffix in _SUFFIXES)
        yield from (prefix + spelled for prefix in _PREFIXES)
    # Targets of iptables are the modules with capitals: xt_MASQUERADE.
    family, _, target = lower.partition("_")
    yield from (f"xt_{lower.upper()}", f"{family}_{target.upper()}", lower.removesuffix("fs"))
    if unit != lower:
        yield from (unit, f"{unit}ing", f"{unit}_mod")


def _question(names: tuple[str, ...]) -> str:
    return f"did you mean {' or '.join(names)}?" if names else ""
