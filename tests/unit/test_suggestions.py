# SPDX-License-Identifier: LGPL-2.1-or-later
"""Did you mean?"""

import pytest

from kmodd.suggestions import another_name, did_you_mean, near, several_names, which_module


def test_mistyped_names_are_recognised() -> None:
    names = ["vfat", "fat", "dummy", "loop", "overlay"]
    assert near("dumy", names) == ("dummy",)
    assert near("overlya", names) == ("overlay",)
    assert near("vlat", names)[0] == "vfat"


def test_nothing_close_nothing_said() -> None:
    assert did_you_mean("zzzz", ["vfat", "loop"]) == ""
    assert did_you_mean("usbcore", ["ib_core", "mlx5_core"]) == "", "another first letter is seldom a slip"


def test_question_names_the_candidates() -> None:
    assert did_you_mean("numdumies", ["numdummies", "x"]) == "did you mean numdummies?"


def test_at_most_three() -> None:
    assert len(near("abcd", [f"abcd{i}" for i in range(9)])) == 3


MODULES = (
    "8021q", "act_mirred", "aes_generic", "aes_ti", "aesni_intel", "bonding", "br_netfilter", "bridge", "sch_fq", "sr_mod",
    "tcp_cubic", "wireguard", "xt_conntrack", "dm_crypt", "dummy", "e1000", "e1000e", "firewire_ohci", "ip_tables", "kvm_intel", "loop",
    "nf_conntrack", "nf_conntrack_ftp", "nf_nat", "nls_utf8", "overlay", "sch_fq_codel", "tcp_lp", "scsi_mod",
    "sha256_generic", "snd_aloop",
    "squashfs", "tcp_bbr", "tun", "vfat", "xt_LOG", "xt_MASQUERADE", "xt_MARK", "xt_mark", "xt_comment", "zram",
)  # fmt: skip


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("nf_conntrack_ipv4", "nf_conntrack"),
        ("nf_conntrack_ipv6", "nf_conntrack"),
        ("nf_nat_ipv4", "nf_nat"),
        ("ip_conntrack", "nf_conntrack"),
        ("ip_conntrack_ftp", "nf_conntrack_ftp"),
        ("ip_nat", "nf_nat"),
        ("ipt_MASQUERADE", "xt_MASQUERADE"),
        ("ipt_LOG", "xt_LOG"),
        ("overlayfs", "overlay"),
        ("bbr", "tcp_bbr"),
        ("BBR", "tcp_bbr"),
        ("fq_codel", "sch_fq_codel"),
        ("mirred", "act_mirred"),
        ("crypt", "dm_crypt"),
        ("aloop", "snd_aloop"),
        ("utf8", "nls_utf8"),
        ("intel", "kvm_intel"),
        ("masquerade", "xt_MASQUERADE"),
        ("xt_masquerade", "xt_MASQUERADE"),
        ("comment", "xt_comment"),
        ("sha256", "sha256_generic"),
        ("aes", "aes_generic"),
        ("scsi", "scsi_mod"),
        ("squash", "squashfs"),
        ("bond", "bonding"),
        ("bond0", "bonding"),
        ("dummy0", "dummy"),
        ("loop.ko", "loop"),
        ("loop.ko.xz", "loop"),
        ("kvm-intel.ko.zst", "kvm_intel"),
        ("/lib/modules/6.1.0/kernel/drivers/block/loop.ko", "loop"),
        ("LOOP", "loop"),
        ("KVM-Intel", "kvm_intel"),
        ("8021q.ko.xz", "8021q"),
        ("802.1q", "8021q"),
        ("vlan", "8021q"),
        ("nf_nat_masquerade_ipv4", "nf_nat"),
        ("conntrack", "nf_conntrack"),
        ("cubic", "tcp_cubic"),
        ("vfat32", "vfat"),
        ("iptables", "ip_tables"),
        ("bridge-nf", "br_netfilter"),
        ("aes-ni", "aesni_intel"),
        ("aesni", "aesni_intel"),
        ("fq", "sch_fq"),
        ("wg0", "wireguard"),
        ("sr0", "sr_mod"),
        ('"loop"', "loop"),
        ("loop;", "loop"),
        ("loop:", "loop"),
        ("./loop.ko", "loop"),
    ],
)
def test_what_people_call_a_module(written: str, meant: str) -> None:
    assert another_name(written, MODULES) == meant
    assert which_module(written, MODULES) == f"did you mean {meant}?"


@pytest.mark.parametrize(
    "name", ["nouveau", "snd_intel8x0m", "e100", "lp", "vmw_vsock", "tun/tap", "", "/", ".ko", "x" * 4096]
)
def test_a_name_of_something_else_is_no_other_name(name: str) -> None:
    assert another_name(name, MODULES) == ""


@pytest.mark.parametrize("text", ["nf_conntrack ip_tables", "nf_conntrack,ip_tables", " loop  vfat "])
def test_several_names_in_one_text(text: str) -> None:
    assert several_names(text) == tuple(text.replace(",", " ").split())
    several = " ".join(several_names(text))
    assert which_module(text, MODULES) == f"load several modules with: printf 'load %s\\n' {several} | kmodctl batch -"


def test_a_device_alias_is_not_several_names() -> None:
    assert several_names("platform:Fixed MDIO bus") == ()
    assert several_names("loop") == ()
