# SPDX-License-Identifier: LGPL-2.1-or-later
"""Situations that users of modules have reported, on the real kernel: modprobe and the kernel say what is right."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.client import Client, Ended, Kmodctl
from tests.system.conftest import Boot
from tests.vm.machine import Machine

LINES = "/etc/modprobe.d/reported.conf"
AT_BOOT = "/etc/modules-load.d/reported.conf"
UNLOADED = (
    "udevadm settle --timeout=30; "
    "rmmod $(cut -d' ' -f1 /proc/modules | grep -xE 'dummy|bonding|tls|loop|nbd|brd|zram|nls_ascii|nls_cp437') 2>/dev/null; true"
)
"""A command that removes the modules that the tests load."""
CONFLICT, POLICY, FORBIDDEN = 5, 6, 11


@pytest.fixture(autouse=True)
def _clean(vm: Machine) -> Iterator[None]:
    """No rules and no modules of the test before."""
    yield
    vm.run(f"cd /etc/modprobe.d && rm -f {LINES} {AT_BOOT} kmodd-*.conf zz-*.conf 00-*.conf; {UNLOADED}")


@pytest.fixture(autouse=True, scope="module")
def _no_bug(vm: Machine) -> Iterator[None]:
    yield
    assert "Traceback" not in vm.journal("-u", "kmodd*")


def text(ended: Ended) -> str:
    """Everything that kmodctl printed, as one line."""
    return " ".join((ended.out + ended.err).split())


def findings(kmodctl: Kmodctl, file: str = "") -> list[dict[str, Any]]:
    """Findings of `config show`, in their order."""
    rows = json.loads(kmodctl("--json", "config", "show").out)
    return [finding for row in rows for finding in row["findings"] if finding["file"].startswith(file)]


def is_loaded(vm: Machine, name: str) -> bool:
    return vm.run(f"grep -q '^{name} ' /proc/modules").code == 0


def inserted(vm: Machine, *arguments: str) -> list[str]:
    """Modules that modprobe would insert, with their parameters."""
    lines = vm.run(["modprobe", "-n", "-v", *arguments]).stdout.splitlines()
    words = [line.split() for line in lines if line.startswith("insmod ")]
    return [" ".join([Path(one[1]).name.partition(".")[0].replace("-", "_"), *one[2:]]) for one in words]


def planned(client: Client, name: str) -> list[str]:
    """What kmodd would insert, with the parameters; the name of the error where it would fail."""
    rows = client.plan(("load", name, {}))
    failed = [row["error"] for row in rows if row.get("error")]
    return failed or [" ".join([row["module"], row["parameters"]]).strip() for row in rows]


def test_what_the_distribution_ships_has_no_finding(vm: Machine, kmodctl: Kmodctl) -> None:
    assert findings(kmodctl) == []
    assert "No findings in module rules." in kmodctl("status").out


def test_an_alias_brings_its_options_and_goes_before_a_name(vm: Machine, client: Client, kmodctl: Kmodctl) -> None:
    vm.write_file(
        LINES,
        "alias bond0 bonding\noptions bond0 miimon=100 mode=1\nalias disk0 brd\noptions disk0 rd_nr=3\nalias dummy brd\n",
    )
    for name in ("bond0", "bonding", "disk0", "dummy", "brd"):
        assert planned(client, name) == inserted(vm, name)
    assert inserted(vm, "bond0")[-1] == "bonding miimon=100 mode=1 max_bonds=0"
    assert inserted(vm, "dummy") == ["brd numdummies=0"]
    assert [one["kind"] for one in findings(kmodctl, LINES)] == ["hides-module"]
    assert kmodctl("load", "disk0").code == 0
    assert vm.read_file("/sys/module/brd/parameters/rd_nr").strip() == b"3"
    vm.check("udevadm settle && rmmod brd")
    assert kmodctl("load", "dummy").code == 0
    assert is_loaded(vm, "brd")
    assert not is_loaded(vm, "dummy")


def test_every_device_alias_of_the_machine_is_answered_as_modprobe_does(vm: Machine, client: Client) -> None:
    aliases = sorted({*vm.check("find /sys -name modalias -exec cat {} + 2>/dev/null").splitlines()} - {""})
    aliases += ["crypto-gcm(aes)", "crypto-md5", "devname:net/tun", "char-major-10-200", "fs-vfat", "net-pf-10"]
    assert any("/" in alias for alias in aliases), "the machine's own (/sys/class/dmi/id/modalias) is among them"
    assert any(len(alias) > 512 for alias in aliases), "so is the processor's, with all it can do"
    differ = {}
    for alias in aliases:
        shown = inserted(vm, alias)
        found = planned(client, alias)
        if found != shown and (shown, found) != ([], ["NoSuchModule"]):
            differ[alias] = (shown, found)
    assert not differ


REFUSES = "install dummy /bin/false\n"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        ("echo '{0}' > /root/kept.conf; ln -s /root/kept.conf {1}", "leads to /root/kept.conf, which cannot be read"),
        ("echo '{0}' > /home/kept.conf; ln -s /home/kept.conf {1}", "leads to /home/kept.conf, which cannot be read"),
        ("echo '{0}' > /tmp/kept.conf; ln -s /tmp/kept.conf {1}", "leads to /tmp/kept.conf, which kmodd cannot see"),
        ("echo '{0}' > /srv/kept.conf; ln -s /srv/kept.conf {1}", "an install line disables it"),
        ("echo '{0}' > {1}; chmod 0 {1}; chown nobody {1}", "cannot be read (EACCES)"),
        ("ln -s /nonexistent/kept.conf {1}", ""),
        ("ln -s /dev/null {1}", ""),
        ("ln -s reported.conf {1}", ""),
    ],
    ids=["/root", "/home", "/tmp", "/srv", "closed", "dangling", "null", "circle"],
)
def test_a_rule_that_kmodd_cannot_read_refuses(vm: Machine, kmodctl: Kmodctl, make: str, says: str) -> None:
    try:
        vm.check(make.format(REFUSES.strip(), LINES))
        assert (vm.run("modprobe dummy").code != 0) == bool(says)
        vm.run("rmmod dummy")
        ended = kmodctl("load", "dummy")
        assert ended.code == (POLICY if says else 0), text(ended)
        assert says in text(ended)
        assert is_loaded(vm, "dummy") == (not says)
        if "read" in says or "see" in says:
            assert kmodctl("load", "dummy", "--override-policy").code == POLICY
            (finding,) = findings(kmodctl, LINES)
            assert finding["kind"] == "unreadable"
    finally:
        vm.run("rm -f {/root,/home,/tmp,/srv}/kept.conf")


def test_a_folder_of_rules_that_was_replaced(vm: Machine, kmodctl: Kmodctl) -> None:
    try:
        vm.check("mv /etc/modprobe.d /etc/former && cp -a /etc/former /etc/modprobe.d")
        ended = kmodctl("config", "blacklist", "brd", "--hard")
        if ended.code:
            assert ended.code == FORBIDDEN
            assert "if it is mounted rw the directory was replaced: systemctl restart kmodd" in text(ended)
            vm.check("systemctl restart kmodd")
            ended = kmodctl("config", "blacklist", "brd", "--hard")
        assert ended.code == 0, text(ended)
        assert vm.run("modprobe brd").code != 0
        vm.write_file("/etc/former/other.conf", "blacklist zram\n")
        assert not any(row["module"] == "zram" for row in json.loads(kmodctl("--json", "config", "show").out))
        assert kmodctl("config", "blacklist", "brd", "--off").code == 0
    finally:
        vm.run("rm -rf /etc/former; systemctl restart kmodd")


@pytest.mark.parametrize(
    ("command", "loads"),
    [
        ("/sbin/modprobe --ignore-install dummy", True),
        ("modprobe -i -q dummy $CMDLINE_OPTS", True),
        ("exec /sbin/modprobe -i dummy", True),
        ("/bin/true", False),
        ("/usr/bin/false # not here", False),
        ("false || true", False),
    ],
)
def test_an_install_line_that_is_permission_or_refusal(
    vm: Machine, kmodctl: Kmodctl, command: str, loads: bool
) -> None:
    vm.write_file(LINES, f"install dummy {command}\n")
    vm.run("modprobe dummy")
    assert is_loaded(vm, "dummy") == loads
    vm.run("rmmod dummy")
    ended = kmodctl("load", "dummy")
    assert (ended.code, is_loaded(vm, "dummy")) == (0 if loads else POLICY, loads)
    assert findings(kmodctl, LINES) == []


def test_an_install_line_that_does_more_is_never_run(vm: Machine, kmodctl: Kmodctl) -> None:
    vm.write_file(LINES, "install dummy touch /run/reported; /sbin/modprobe --ignore-install dummy\n")
    ended = kmodctl("load", "dummy")
    assert ended.code == POLICY
    assert "runs a shell command, which kmodd never does: it would load dummy" in text(ended)
    assert vm.run("test -e /run/reported").code == 1
    assert not is_loaded(vm, "dummy")


# A line, the kind of its finding, what its sentence says, and a script with what it prints for the line and for those instead.
VALUE = "modprobe {0} && cat /sys/module/{0}/parameters/{1}; modprobe -r {0}"
LISTED = "modprobe -b {0}; grep -c '^{0} ' /proc/modules; modprobe -r {0}"
ROWS = [
    ("blacklist z*ram", "pattern", "takes a name, not a pattern", LISTED.format("zram"), "1", "0"),
    ("blacklist brd zram", "several-names", "acts on brd alone", LISTED.format("zram"), "1", "0"),
    ("blacklist brd, zram", "several-names", "acts on no module", LISTED.format("brd"), "1", "0"),
    ("blacklist zram\r", "odd-character", "a carriage return is part of the name", LISTED.format("zram"), "1", "0"),
    ("\ufeffblacklist zram", "odd-character", "a byte order mark", LISTED.format("zram"), "1", "0"),
    ("blacklist\u00a0zram", "odd-character", "a no-break space", LISTED.format("zram"), "1", "0"),
    ("# disks \\\nblacklist zram", "ignored-line", "part of this comment", LISTED.format("zram"), "1", "0"),
    ('blacklist "zram"', "mistyped", "did you mean zram?", LISTED.format("zram"), "1", "0"),
    ("blacklist zram.ko", "mistyped", "did you mean zram?", LISTED.format("zram"), "1", "0"),
    ("options nbd max_part=8# parts", "bad-value", "put comments on a separate line", VALUE.format("nbd", "max_part"), "", "15"),
    ("options brd rd_nr=2 # was rd_nr=16", "comment", "does not start a comment here", VALUE.format("brd", "rd_nr"), "16", "2"),
    ("options brd zram rd_nr=2", "several-names", "takes one module: zram is read as", VALUE.format("brd", "rd_nr"), "2", "2"),
    ("options brd,zram rd_nr=2", "several-names", "takes one module", VALUE.format("brd", "rd_nr"), "16", "2"),
    ("options brd rd_nr = 2", "bad-value", "no spaces are allowed around =", VALUE.format("brd", "rd_nr"), "", "2"),
    ("options brd rd_nr= 2", "bad-value", "no spaces are allowed around =", VALUE.format("brd", "rd_nr"), "", "2"),
    ("options brd rd_nr 2", "bad-value", "its value follows =", VALUE.format("brd", "rd_nr"), "", "2"),
    ("options brd rd_nr=2,max_part=2", "bad-value", "separated by spaces", VALUE.format("brd", "rd_nr"), "", "2"),
    ("options brd rd_nr='2'", "bad-value", "only double quotes are recognized", VALUE.format("brd", "rd_nr"), "", "2"),
    ("options brd brd.rd_nr=2", "unknown-parameter", "are named without brd", VALUE.format("brd", "rd_nr"), "16", "2"),
    ("options brd RD_NR=2", "unknown-parameter", "exactly", VALUE.format("brd", "rd_nr"), "16", "2"),
    ("options brd: rd_nr=2", "mistyped", "no module 'brd:'", VALUE.format("brd", "rd_nr"), "16", "2"),
    ("softdep brd pre:zram", "bad-softdep", "followed by a space", "modprobe brd; grep -c '^zram ' /proc/modules", "0", "1"),
    ("softdep brd pre zram", "bad-softdep", "pre: or post: is missing", "modprobe brd; grep -c '^zram ' /proc/modules", "0", "1"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "kind", "says", "script", "now", "then"), ROWS, ids=[row[0] for row in ROWS])
def test_a_line_does_what_it_was_written_for_once_it_is_written_as_the_finding_says(
    vm: Machine, kmodctl: Kmodctl, line: str, kind: str, says: str, script: str, now: str, then: str
) -> None:
    vm.write_file(LINES, line + "\n")
    told = findings(kmodctl, LINES)
    first = told[0]
    assert (first["kind"], first["severity"], first["file"], first["line"]) == (kind, "warning", LINES, 1)
    assert says in first["message"]
    assert vm.run(script).stdout.strip() == now
    written = "".join(f"{text}\n" for file, text in first["instead"] if file == LINES)
    vm.write_file(LINES, written)
    assert vm.run(f"{UNLOADED}; {script}").stdout.strip() == then
    assert [one for one in findings(kmodctl, LINES) if one["severity"] == "warning"] == []


def test_a_value_of_the_wrong_type(vm: Machine, kmodctl: Kmodctl) -> None:
    vm.write_file(LINES, "options loop max_loop=eight\n")
    (told,) = findings(kmodctl, LINES)
    assert told["kind"] == "bad-value"
    assert "parameter max_loop of loop takes an integer" in told["message"]
    vm.run("modprobe -r loop")
    assert vm.run("modprobe loop").code != 0
    assert kmodctl("load", "loop").code == 9


LOADER = "/usr/lib/systemd/systemd-modules-load"


@pytest.mark.parametrize(
    ("line", "kind", "says", "elsewhere"),
    [
        ("nbd nbds_max=4", "misplaced", "parameters belong in modprobe.d", "options nbd nbds_max=4"),
        ("brd zram", "several-names", "is one name", ""),
        ("blacklist brd", "misplaced", "blacklist belongs in modprobe.d", "blacklist brd"),
        ("brd.ko", "missing-module", "did you mean brd?", ""),
        ("BRD", "missing-module", "did you mean brd?", ""),
        ("brd # disks", "comment", "does not start a comment here", ""),
        ("brd.rd_nr=2", "misplaced", "parameters belong in modprobe.d", "options brd rd_nr=2"),
        ("b*rd", "pattern", "a name, not a pattern", ""),
    ],
)
def test_a_line_of_modules_load(vm: Machine, kmodctl: Kmodctl, line: str, kind: str, says: str, elsewhere: str) -> None:
    vm.write_file(AT_BOOT, line + "\n")
    (told,) = findings(kmodctl, AT_BOOT)
    assert (told["kind"], told["severity"]) == (kind, "warning")
    assert says in told["message"]
    vm.run([LOADER, AT_BOOT])
    assert not any(is_loaded(vm, name) for name in ("brd", "zram", "nbd"))
    names = [text for file, text in told["instead"] if file == AT_BOOT]
    assert [text for file, text in told["instead"] if file != AT_BOOT] == ([elsewhere] if elsewhere else [])
    vm.write_file(AT_BOOT, "".join(f"{name}\n" for name in names))
    vm.write_file(LINES, elsewhere + "\n")
    vm.run([LOADER, AT_BOOT])
    for name in names:
        assert name.startswith("#") or is_loaded(vm, name)
    if "=" in elsewhere:
        _, module, assignment = elsewhere.split()
        parameter, _, value = assignment.partition("=")
        assert vm.read_file(f"/sys/module/{module}/parameters/{parameter}").decode().strip() == value
    assert [one for one in findings(kmodctl, AT_BOOT) if one["severity"] == "warning"] == []


def test_files_that_modprobe_does_not_read(vm: Machine, kmodctl: Kmodctl) -> None:
    places = ["/etc/modprobe.conf", "/etc/modprobe.d/site/a.conf", "/etc/modprobe.d/reported"]
    try:
        for place in places:
            vm.write_file(place, "blacklist zram\n")
        assert vm.run(LISTED.format("zram")).stdout.strip() == "1"
        told = {one["file"]: one["kind"] for one in findings(kmodctl)}
        assert told == dict.fromkeys(places, "not-read")
    finally:
        vm.run(["rm", "-rf", "/etc/modprobe.conf", "/etc/modprobe.d/site", "/etc/modprobe.d/reported"])


def test_the_first_install_line_undoes_a_later_refusal(vm: Machine, kmodctl: Kmodctl) -> None:
    try:
        vm.write_file("/usr/lib/modprobe.d/aaa.conf", "install dummy /sbin/modprobe --ignore-install dummy\n")
        vm.write_file(LINES, "install dummy /bin/false\n")
        vm.check("modprobe dummy && rmmod dummy")
        (told,) = findings(kmodctl, LINES)
        assert told["kind"] == "not-in-effect"
        ((file, line),) = told["instead"]
        vm.write_file(file, line + "\n")
        assert vm.run("modprobe dummy").code != 0
        assert [one for one in findings(kmodctl, "/etc/") if one["severity"] == "warning"] == []
    finally:
        vm.run("rm -f /usr/lib/modprobe.d/aaa.conf")


NAMES = {
    "nf_conntrack_ipv4": "nf_conntrack",
    "nf_nat_masquerade_ipv4": "nf_nat",
    "bbr": "tcp_bbr",
    "cubic": "tcp_cubic",
    "loop.ko": "loop",
    "8021q.ko.xz": "8021q",
    "LOOP": "loop",
    "vfat32": "vfat",
    "vlan": "8021q",
    "conntrack": "nf_conntrack",
    "iptables": "ip_tables",
    "aesni": "aesni_intel",
    "wg0": "wireguard",
}


def test_names_of_no_module_lead_to_one(vm: Machine, kmodctl: Kmodctl) -> None:
    for name, meant in NAMES.items():
        assert vm.run(["modprobe", "-n", name]).code != 0, name
        assert vm.run(["modprobe", "-n", meant]).code == 0, meant
        ended = kmodctl("load", name)
        assert ended.code == 3
        assert f"did you mean {meant}?" in text(ended), name
    for name in ("ip_conntrack", "virtio-net", "kvm-intel"):
        assert vm.run(["modprobe", "-n", name]).code == kmodctl("load", name, "--dry-run").code == 0
    # Of what this kernel does not have, nothing is guessed.
    for name in ("e1000e.ko", "snd-hda-intel", "usbcore"):
        assert "did you mean" not in text(kmodctl("load", name))


@pytest.mark.parametrize("words", [["nls_ascii", "nls_cp437"], ["nls_ascii nls_cp437"], ["nls_ascii,nls_cp437"]])
def test_the_command_for_two_modules_loads_them(vm: Machine, kmodctl: Kmodctl, words: list[str]) -> None:
    ended = kmodctl("load", *words)
    assert ended.code in (2, 3)
    command = re.search(r"printf .*kmodctl batch -", text(ended))
    assert command is not None, text(ended)
    vm.check(command[0])
    assert is_loaded(vm, "nls_ascii")
    assert is_loaded(vm, "nls_cp437")


def test_the_way_out_of_a_value_that_the_distribution_sets_later(vm: Machine, kmodctl: Kmodctl) -> None:
    """systemd ships `options bonding max_bonds=0`, which is read after bonding.conf."""
    vendor, own = "/usr/lib/modprobe.d/systemd.conf", "/etc/modprobe.d/systemd.conf"
    value = "modprobe bonding && wc -w < /sys/class/net/bonding_masters; modprobe -r bonding"
    vm.write_file(LINES, "options bonding max_bonds=2\n")
    assert vm.check(value).strip() == "0"
    (told,) = findings(kmodctl, LINES)
    assert told["kind"] == "overridden"
    assert told["message"].startswith(vendor)
    ((file, line),) = told["instead"]
    vm.write_file(file, line + "\n")
    vm.check(["rm", LINES])
    assert vm.check(value).strip() == "2"
    vm.check(["rm", file])
    ended = kmodctl("config", "options", "bonding", "max_bonds=2")
    assert ended.code == CONFLICT
    assert f"copy {vendor} to {own}, which then replaces it, and change it there" in text(ended)
    try:
        vm.check(f"sed /bonding/d {vendor} > {own}")
        assert kmodctl("config", "options", "bonding", "max_bonds=2").code == 0
        assert vm.check(value).strip() == "2"
    finally:
        vm.run(["rm", "-f", own])
        kmodctl("config", "options", "bonding", "--off")


def test_the_kernels_command_line_is_compared_letter_by_letter(boot_vm: Boot) -> None:
    """The kernel splits it at the byte 0xA0 too, the end of a no-break space."""
    vm = boot_vm("modprobe.blacklist=nls-utf8", "x\u00a0module_blacklist=nls-ascii,nls_cp437", kmodd=True)
    kmodctl = Kmodctl(vm)
    assert "Operation not permitted" in vm.run("modprobe nls_cp437").stderr
    ended = kmodctl("load", "nls-cp437")
    assert ended.code == POLICY
    assert "the kernel command line blacklists it" in text(ended)
    vm.check("modprobe nls-ascii && rmmod nls_ascii")
    assert kmodctl("load", "nls-ascii").code == 0
    vm.check("modprobe -b nls-utf8 && grep -q ^nls_utf8 /proc/modules && rmmod nls_utf8")
    told = {
        one["message"]: one["instead"] for one in findings(kmodctl, "/proc/cmdline") if one["kind"] == "ignored-name"
    }
    assert told == {
        "the kernel compares names exactly, and calls it nls_ascii": [["/proc/cmdline", "module_blacklist=nls_ascii"]],
        "modprobe compares the names of modprobe.blacklist= exactly, and calls it nls_utf8": [
            ["/proc/cmdline", "modprobe.blacklist=nls_utf8"]
        ],
    }
