# SPDX-License-Identifier: LGPL-2.1-or-later
"""Why a load or an unload fails: every case ends in its own error, with the kernel's words, in D-Bus, journal and kmodctl."""

from __future__ import annotations

import errno
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from kmodd import errors
from tests.system.client import Client, Kmodctl, loaded, named, record, soon, texts

if TYPE_CHECKING:
    from tests.system.conftest import Boot
    from tests.vm.machine import Machine

T = "kmodd_test_"
BROKEN = "/usr/lib/kmodd-test/broken"
TREE = "/lib/modules/$(uname -r)"
OURS = f"{TREE}/updates/kmodd-test"


@dataclass(frozen=True)
class Row:
    """One cause."""

    name: str
    module: str
    error: type[errors.KmoddError]
    sentence: str
    number: int = 0
    """What the kernel answered; 0 where it was not even asked."""
    log: str = ""
    """In the kernel's own lines."""
    verb: str = "load"
    arguments: tuple[str, ...] = ()
    before: str = ""
    after: str = ""
    hint: str = ""


def replaced(file: str, module: str) -> str:
    """Have the index name a broken file as a module."""
    folder = f"{TREE}/updates" if module == "dummy" else OURS
    return f"cp {BROKEN}/{file}.ko {folder}/{module}.ko && depmod"


GOOD_AGAIN = f"cp /root/kept/*.ko {OURS}/ && rm -f {TREE}/updates/dummy.ko && depmod"
LOADS = [
    Row("value the module refuses", f"{T}params", errors.BadParameter, "parameter level", errno.ERANGE,
        "`12' invalid for parameter `level'", arguments=("level=12",), hint="kmodctl show"),
    Row("value the kernel finds too long", f"{T}params", errors.BadParameter, "parameter a_string", errno.ENOSPC,
        "too large for parameter `a_string'", arguments=("a_string=sixteen letters!",)),
    Row("value of the wrong type", f"{T}params", errors.BadParameter, "takes an integer", arguments=("an_int=abc",)),
    Row("value refused by an options line", f"{T}params", errors.BadParameter, "parameter level", errno.ERANGE, "invalid for",
        before=f"echo 'options {T}params level=12' > /etc/modprobe.d/t.conf", after="rm /etc/modprobe.d/t.conf",
        hint="options line in /etc/modprobe.d/t.conf, line 1"),
    Row("unknown parameter", f"{T}params", errors.UnknownParameter, "has no parameter levle", arguments=("levle=1",),
        hint="level"),
    Row("version magic differs in flags", f"{T}good", errors.WrongKernel, "built with other options", errno.ENOEXEC,
        "version magic '", before=replaced(f"{T}vermagic_flags", f"{T}good"), after=GOOD_AGAIN, hint="rebuild it for RELEASE"),
    Row("truncated", "dummy", errors.BadModule, "is cut short", errno.ENOEXEC, "Invalid ELF section header overflow",
        before=replaced("dummy_truncated", "dummy"), after=GOOD_AGAIN, hint="reinstall the package"),
    Row("not ELF", "dummy", errors.BadModule, "is not a module (not an ELF", errno.ENOEXEC, "Invalid ELF header magic",
        before=replaced("dummy_not_elf", "dummy"), after=GOOD_AGAIN, hint="reinstall the package"),
    Row("empty", "dummy", errors.BadModule, "is empty", errno.EINVAL,
        before=replaced("dummy_empty", "dummy"), after=GOOD_AGAIN),
    Row("other architecture", "dummy", errors.BadModule, "is for another processor architecture", errno.ENOEXEC,
        "Invalid architecture in ELF header: 183", before=replaced("dummy_foreign_architecture", "dummy"), after=GOOD_AGAIN),
    Row("tampered signature", "dummy", errors.BadSignature, "its signature does not match the file", errno.EKEYREJECTED,
        before=replaced("dummy_tampered_signature", "dummy"), after=GOOD_AGAIN, hint="reinstall the module's package"),
    Row("tampered code", "dummy", errors.BadSignature, "changed after signing", errno.EKEYREJECTED,
        before=replaced("dummy_tampered_code", "dummy"), after=GOOD_AGAIN),
    Row("missing dependency", f"{T}dep_b", errors.UnknownSymbol, f"needs {T}dep_a_value", errno.ENOENT,
        f"{T}dep_b: Unknown symbol {T}dep_a_value (err -2)", before=f"rm {OURS}/{T}dep_a.ko && depmod", after=GOOD_AGAIN,
        hint="depmod"),
    Row("file gone", f"{T}info", errors.BadModule, "cannot be read", errno.ENOENT,
        before=f"rm {OURS}/{T}info.ko", after=GOOD_AGAIN, hint="depmod -a"),
    Row("no hardware, without a word", f"{T}nodev", errors.NoDevice, "found no device", errno.ENODEV, hint="lspci"),
    Row("no hardware, in the driver's words", f"{T}opnotsupp", errors.NoDevice, "EOPNOTSUPP", errno.EOPNOTSUPP,
        "this processor has no such feature"),
    Row("init fails", f"{T}fail", errors.InitFailed, "its init returned EIO", errno.EIO, "the flux capacitor is not charged"),
    Row("init of a dependency fails", f"{T}needs_fail", errors.InitFailed, f"{T}fail failed to initialise", errno.EIO,
        "the flux capacitor is not charged"),
    Row("init answers what the loader could have", f"{T}fail", errors.InitFailed, "ENOEXEC", errno.ENOEXEC,
        "the flux capacitor is not charged", arguments=("error=-8",)),
    Row("init answers EPERM", f"{T}fail", errors.InitFailed, "EPERM", errno.EPERM, "the flux capacitor is not charged",
        arguments=("error=-1",)),
    Row("refusing install line", f"{T}good", errors.DisabledByPolicy, "/etc/modprobe.d/t.conf, line 1",
        before=f"echo 'install {T}good /bin/false' > /etc/modprobe.d/t.conf", after="rm /etc/modprobe.d/t.conf"),
    Row("blacklist", f"{T}good", errors.DisabledByPolicy, "/etc/modprobe.d/t.conf, line 1",
        before=f"echo 'blacklist {T}good' > /etc/modprobe.d/t.conf", after="rm /etc/modprobe.d/t.conf", hint="override-policy"),
    Row("no such module", "kmodd_test_godo", errors.NoSuchModule, "no module", hint=f"{T}good"),
]  # fmt: skip
UNLOADS = [
    Row("holders", f"{T}dep_a", errors.InUse, f"is used by {T}dep_b", before=f"modprobe {T}dep_b",
        after=f"modprobe -r {T}dep_b {T}dep_a", verb="unload", hint="--dependents"),
    Row("process", f"{T}chardev", errors.InUse, "is in use by 1 process", verb="unload", hint="end the processes",
        before=f"modprobe {T}chardev; udevadm settle; systemd-run -q --unit=hold sleep 600; systemctl stop hold;"
        f"systemd-run -q --unit=hold sh -c 'exec sleep 600 </dev/{T}chardev';"
        f"until grep -q '^{T}chardev [0-9]* 1 ' /proc/modules; do sleep .1; done",
        after=f"systemctl stop hold; rmmod {T}chardev"),
    Row("reference of the kernel's own", f"{T}self_ref", errors.InUse, "is held by 1 reference", verb="unload",
        before=f"modprobe {T}self_ref hold=1", after=f"echo 0 > /sys/module/{T}self_ref/parameters/hold; rmmod {T}self_ref"),
    Row("no exit", f"{T}permanent", errors.NotRemovable, "has no exit function", verb="unload",
        before=f"modprobe {T}permanent", hint="reboot"),
    Row("built in", "ext4", errors.Builtin, "is built into the kernel", verb="unload"),
    Row("nothing of that name", "kmodd_test_godo", errors.NoSuchModule, "no module", verb="unload"),
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def kept(vm: Machine) -> None:
    """A copy of the test modules to put back."""
    vm.check(f"mkdir -p /root/kept && cp {OURS}/*.ko /root/kept/")


def check(vm: Machine, client: Client, kmodctl: Kmodctl, row: Row) -> None:
    """The same failure by D-Bus, by kmodctl, and in the journal."""
    vm.check(row.before or "true")
    try:
        parameters = dict(argument.split("=", 1) for argument in row.arguments)
        given = (parameters,) if row.verb == "load" else ()
        error = client.refused(row.verb.title(), row.module, *given, {})
        assert error.name == row.error.name()
        assert row.sentence in error.message
        reason = f"because of {row.name}"
        ended = kmodctl("--no-pager", row.verb, "--reason", reason, row.module, *row.arguments)
    finally:
        vm.check(row.after or "true")
    assert ended.code == row.error.exit_code
    assert row.error.title in ended.err
    assert row.sentence in ended.err
    assert "hint:" in ended.err
    written = record(vm, f"KMODD_REASON={reason}")
    assert written["KMODD_ERROR"] == row.error.name()
    assert written["KMODD_RESULT"] == "failed"
    assert written["KMODD_ACTION"] == row.verb
    assert row.sentence in written["MESSAGE"]
    if row.number:
        assert written["KMODD_ERRNO"] == str(row.number)
        assert f"({row.number})" in ended.err
    else:
        assert "KMODD_ERRNO" not in written
    assert row.log in " ".join(texts(written.get("KMODD_KERNEL_LOG")))
    assert row.log in ended.err
    assert written["KMODD_HINT"]
    assert row.hint.replace("RELEASE", vm.image.release) in written["KMODD_HINT"] + ended.err


@pytest.mark.parametrize("row", LOADS, ids=lambda row: row.name)
def test_why_a_load_fails(vm: Machine, client: Client, kmodctl: Kmodctl, row: Row) -> None:
    check(vm, client, kmodctl, row)
    assert loaded(vm) <= {"permanent"}


@pytest.mark.parametrize("row", UNLOADS, ids=lambda row: row.name)
def test_why_an_unload_fails(vm: Machine, client: Client, kmodctl: Kmodctl, row: Row) -> None:
    check(vm, client, kmodctl, row)


def test_busy_module_is_refused_with_who_keeps_it_so(vm: Machine, client: Client, kmodctl: Kmodctl) -> None:
    vm.check("modprobe overlay; mkdir -p /tmp/l /tmp/u /tmp/w /tmp/m")
    vm.check("mount -t overlay stacked -o lowerdir=/tmp/l,upperdir=/tmp/u,workdir=/tmp/w /tmp/m")
    try:
        assert client.refused("Unload", "overlay", {}).message == "overlay is in use by 1 mount"
        ended = kmodctl("unload", "overlay", "--reason", "busy")
        document = json.loads(kmodctl("--json", "unload", "overlay").out)
    finally:
        vm.check("umount /tmp/m")
    assert ended.code == 5
    assert "mount" in ended.err
    assert "/tmp/m" in ended.err
    written = record(vm, "KMODD_REASON=busy")
    assert written["KMODD_USERS"] == "mount /tmp/m (type overlay, source stacked)"
    assert "umount" in written["KMODD_HINT"]
    (user,) = document["users"]
    assert (user["kind"], user["name"], user["command"]) == ("mount", "/tmp/m", "umount /tmp/m")
    assert client.unload("overlay") == ["overlay"]


def refusals(client: Client) -> float:
    """How often the module that a rule forbids was refused, as the metrics have it."""
    wanted = {"module": f"{T}good", "action": "insert", "error": "DisabledByPolicy"}
    rows = client.call("GetMetrics")
    return sum(
        float(value) for name, _, labels, value in rows if name == "kmodd_module_failures_total" and labels == wanted
    )


def test_refusal_carries_its_rule_and_counts(vm: Machine, client: Client, kmodctl: Kmodctl) -> None:
    file, before = "/etc/modprobe.d/t.conf", refusals(client)
    vm.check(f"printf '# no\nblacklist {T}good\n' > {file}")
    try:
        ended = kmodctl("--json", "load", f"{T}good", "--reason", "ruled out")
    finally:
        vm.check(f"rm {file}")
    found = json.loads(ended.out)
    assert (ended.code, found["error"]) == (6, "DisabledByPolicy")
    assert (found["file"], found["line"], found["rule"]) == (file, 2, f"blacklist {T}good")
    written = record(vm, "KMODD_REASON=ruled out")
    assert (written["KMODD_FILE"], written["KMODD_LINE"], written["KMODD_RULE_KIND"]) == (file, "2", "blacklist")
    assert refusals(client) == before + 1


def test_alias_with_blanks_is_one_field_of_the_journal(vm: Machine, client: Client) -> None:
    alias = f"usb:no {T}good such"
    error = client.refused("Load", alias, {}, named({"reason": "blanks"}))
    assert error.name == "NoSuchModule"
    assert record(vm, "KMODD_REASON=blanks")["KMODD_MODULE"] == alias


def test_evidence_of_an_earlier_failure_is_not_shown_for_another(client: Client, kmodctl: Kmodctl) -> None:
    client.refused("Load", f"{T}params", {"level": "12"}, {})
    ended = kmodctl("load", f"{T}params", "an_int=abc")
    assert ended.code == 9
    assert "ERANGE" not in ended.err
    client.call("ResetFailed", f"{T}params")


def test_release_in_the_version_magic_does_not_matter(vm: Machine, client: Client) -> None:
    vm.check(replaced(f"{T}vermagic_release", f"{T}good"))
    try:
        assert client.load(f"{T}good") == [f"{T}good"]
        client.unload(f"{T}good")
    finally:
        vm.check(GOOD_AGAIN)


def test_unsigned_module_loads_and_health_says_so(client: Client) -> None:
    client.load(f"{T}good")
    try:
        found = {(check["name"], check["module"]) for check in client.call("GetHealth")["checks"]}
        assert ("unsigned-module", f"{T}good") in found
        assert (
            client.properties(f"/org/kmodd1/module/{T.replace('_', '_5f')}good", "org.kmodd1.Module")["Taint"] == "OE"
        )
    finally:
        client.unload(f"{T}good")


def test_caller_without_rights_never_reaches_the_kernel(vm: Machine) -> None:
    alice, kmodctl = Client(vm, user="alice"), Kmodctl(vm, user="alice")
    error = alice.refused("Load", f"{T}good", {}, named({"reason": "please"}))
    assert error.name in {"AccessDenied", "InteractiveAuthorizationRequired"}
    ended = kmodctl("load", f"{T}good", "--reason", "pretty please")
    assert (ended.code, "hint:" in ended.err) == (4, True)
    assert loaded(vm) <= {"permanent"}
    denied = soon(
        lambda: vm.journal("KMODD_EVENT=authorization.denied", f"KMODD_MODULE={T}good", "KMODD_UID=1000"), "it"
    )
    assert "refused" in denied
    # What cannot succeed is said without a password, and recorded as hers.
    assert alice.refused("Unload", "ext4", named({"reason": "hopeless"})).name == "Builtin"
    assert record(vm, "KMODD_REASON=hopeless")["KMODD_UID"] == "1000"
    alice.process.end()
    kmodctl.process.end()


# --- what only the kernel's command line can say ----------------------------------------------------------------------------


def test_lockdown_and_blacklist_of_the_command_line(boot_vm: Boot) -> None:
    vm = boot_vm("lockdown=integrity", "module_blacklist=softdog,kmodd-test-good", kmodd=True)
    client, kmodctl = Client(vm), Kmodctl(vm)
    hint = "remove it from module_blacklist="
    check(
        vm,
        client,
        kmodctl,
        Row("lockdown", f"{T}xz", errors.Lockdown, "the kernel is locked down", hint="sign the module"),
    )
    check(
        vm,
        client,
        kmodctl,
        Row("command line", "softdog", errors.DisabledByPolicy, "the kernel command line", hint=hint),
    )
    explained = client.explain("softdog")
    assert (explained["state"], explained["loadable"]) == ("disabled", False)
    assert "module_blacklist=softdog,kmodd-test-good" in explained["policy"]
    explained = client.explain(f"{T}xz")
    assert (explained["state"], explained["loadable"]) == ("available", False)
    assert "lockdown" in " ".join(explained["blockers"])
    assert client.call("GetHealth")["lockdown"] == "integrity"
    assert client.properties("/org/kmodd1", "org.kmodd1.Manager")["Lockdown"] == "integrity"
    assert client.load("dummy") == ["dummy"], "a signed one loads"
    # Nothing can be loaded unseen by the daemon: the kernel says the same to modprobe.
    assert "Operation not permitted" in vm.run(["modprobe", f"{T}xz"]).stderr
    # The worker is asked where the kernel's answer cannot be foreseen.
    assert client.unload("dummy") == ["dummy"]
    vm.check("sysctl -qw kernel.modules_disabled=1")
    for verb, module in (("load", "dummy"), ("unload", "loop")):
        vm.run("true")
        disabled = Row(f"disabled {verb}", module, errors.ModulesDisabled, "disabled until reboot", verb=verb)
        if verb == "unload" and "loop" not in vm.check("cat /proc/modules"):
            disabled = Row(f"disabled {verb}", "evdev", errors.ModulesDisabled, disabled.sentence, verb=verb)
        check(vm, client, kmodctl, disabled)
    assert soon(lambda: client.call("GetHealth")["modules-disabled"], "health knows")
    assert "disabled until reboot" in " ".join(client.explain("dummy")["blockers"])


def test_enforced_signatures(boot_vm: Boot) -> None:
    vm = boot_vm("module.sig_enforce=1", kmodd=True)
    client, kmodctl = Client(vm), Kmodctl(vm)
    check(
        vm, client, kmodctl, Row("unsigned", f"{T}good", errors.BadSignature, "is not signed", hint="sign the module")
    )
    check(
        vm, client, kmodctl,
        Row("tampered", "dummy", errors.BadSignature, "its signature does not match", errno.EKEYREJECTED,
            before=replaced("dummy_tampered_code", "dummy"), after=f"rm {TREE}/updates/dummy.ko; depmod"),
    )  # fmt: skip
    assert client.load("dummy") == ["dummy"]
    assert client.call("GetHealth")["signature-enforced"]
