# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every row of the tables: from errno and the kernel's own lines to one error, one sentence and one hint."""

import errno
from dataclasses import replace
from typing import Any

import pytest

from kmodd.core.diagnosis.advice import advised
from kmodd.core.diagnosis.diagnosis import UNLOAD_TABLE, diagnose
from kmodd.core.diagnosis.evidence import StepEvidence
from kmodd.core.diagnosis.load_failures import KEYS_LISTED, LOAD_TABLE, SIGNER_MAX, key_hint
from kmodd.errors import (
    BadModule,
    BadParameter,
    BadSignature,
    Builtin,
    Busy,
    Conflict,
    Crashed,
    DisabledByPolicy,
    InitFailed,
    InUse,
    KmoddError,
    Lockdown,
    ModulesDisabled,
    NoDevice,
    NotPermitted,
    NotRemovable,
    Stuck,
    TimedOut,
    UnknownSymbol,
    WrongKernel,
)
from kmodd.kernel.worker.worker import REFUSALS
from kmodd.model import LoadedModule, Outcome, State, Step, StepAction, User
from kmodd.model.store import ENROL
from kmodd.names import ModuleName
from tests.unit.fakes import FILE, facts, names, rule

M = ModuleName("dummy")
LOAD = StepEvidence(Step(StepAction.INSERT, M), Outcome("done"), facts())
UNLOAD = StepEvidence(Step(StepAction.REMOVE, M), Outcome("done"), facts())
LIVE = LoadedModule(M, 4096, 0, (), State.LIVE)


def load(code: int, *log: str, **more: Any) -> KmoddError:
    return diagnose(replace(LOAD, outcome=Outcome("done", code), log=log, **more))


def unload(code: int, module: LoadedModule | None = LIVE, **more: Any) -> KmoddError:
    return diagnose(replace(UNLOAD, outcome=Outcome("done", code), module=module, **more))


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("release", "the file of dummy is for another kernel than the running one"),
        ("place", "the file of dummy is not in the module tree of the running kernel"),
        ("kind", "the file of dummy is not a regular file"),
        ("owner", "the file of dummy is writable by other users than root, or a directory or link on its path is"),
        ("digest", "the file of dummy is not the one that was activated in the store"),
    ],
)
def test_file_that_the_worker_refuses_is_a_bad_module(word: str, sentence: str) -> None:
    assert word in REFUSALS
    step = replace(LOAD.step, path="/lib/modules/a b/$(id).ko")
    error = diagnose(replace(LOAD, step=step, outcome=Outcome("done", errno.EACCES, data=word.encode())))
    assert (type(error), error.message) == (BadModule, sentence)
    assert "$(id)" not in error.evidence.hint.replace("'/lib/modules/a b/$(id).ko'", "")


def test_every_refusal_of_the_worker_has_its_sentence() -> None:
    for word in REFUSALS:
        error = diagnose(replace(LOAD, outcome=Outcome("done", errno.EACCES, data=word.encode())))
        assert "may be loaded" not in error.message


LOCKED = "Lockdown: kmodd: unsigned module loading is restricted; see man kernel_lockdown.7"

ROWS: list[tuple[int, str, type[KmoddError], str]] = [
    # EPERM
    (errno.EPERM, "Module dummy is blacklisted", DisabledByPolicy, "the kernel command line blacklists it"),
    (errno.EPERM, LOCKED, Lockdown, "whose file has no signature it trusts"),
    (errno.EPERM, "Lockdown: kmodd: unsafe module parameters is restricted", Lockdown, "have this parameter"),
    (errno.EPERM, 'LoadPin: kernel-module denied obj="/x.ko"', NotPermitted, "a security module"),
    (errno.EPERM, "audit: type=1400 avc:  denied  { module_load }", NotPermitted, "a security module"),
    (errno.EPERM, "", NotPermitted, "gives no reason"),
    (errno.EPERM, "dummy: the board is write-protected", InitFailed, "its init returned EPERM"),
    (errno.EACCES, "integrity: ima: appraisal failed", NotPermitted, "a security module"),
    (errno.EACCES, "", InitFailed, "EACCES"),
    # signatures
    (errno.EKEYREJECTED, "", BadSignature, "changed after signing"),
    (errno.EKEYREJECTED, "Loading of unsigned module is rejected", BadSignature, "not signed"),
    (
        errno.EKEYREJECTED,
        "Loading of module with unavailable key is rejected",
        BadSignature,
        "key the kernel does not know",
    ),
    (errno.EKEYREJECTED, "Loading of module with unsupported crypto is rejected", BadSignature, "method the kernel"),
    (errno.ENOKEY, "", BadSignature, "key the kernel does not know"),
    (errno.ENOPKG, "", BadSignature, "method the kernel does not support"),
    (errno.EKEYEXPIRED, "", BadSignature, "expired"),
    (errno.EKEYREVOKED, "", BadSignature, "revoked"),
    (errno.EBADMSG, "dummy: Module is not signed with expected PKCS#7 message", BadSignature, "changed after signing"),
    # the file
    (errno.ENOEXEC, "dummy: version magic '6.1 SMQ ' should be '6.1 SMP '", WrongKernel, "version magic differs"),
    (errno.ENOEXEC, "dummy: disagrees about version of symbol module_layout", WrongKernel, "symbol versions differ"),
    (errno.ENOEXEC, "dummy: no symbol version for module_layout", WrongKernel, "symbol versions differ"),
    (errno.EINVAL, "dummy: disagrees about version of symbol fat_scan", WrongKernel, "symbol versions differ"),
    (errno.EINVAL, "failed to validate module [dummy] BTF: -22", WrongKernel, "type information"),
    (errno.ENOEXEC, "Invalid ELF section header overflow", BadModule, "is cut short"),
    (errno.ENOEXEC, "Invalid ELF header len 12", BadModule, "is cut short"),
    (errno.ENOEXEC, "Module len 4000 truncated", BadModule, "is cut short"),
    (errno.ENOEXEC, "Invalid ELF header magic: != \\x7fELF", BadModule, "is not a module (not an ELF"),
    (errno.ENOEXEC, "Invalid architecture in ELF header: 183", BadModule, "another processor architecture"),
    (errno.ENOEXEC, "Invalid ELF header type: 2 != 1", BadModule, "is an ELF file, but not a module"),
    (errno.ENOEXEC, "Invalid ELF section header size", BadModule, "invalid section headers"),
    (errno.ENOEXEC, "ELF Spec violation: section type mismatch", BadModule, "invalid section headers"),
    (errno.ENOEXEC, "dummy: module has no symbols (stripped?)", BadModule, "stripped"),
    (errno.ENOEXEC, "dummy: No module found in object", BadModule, "is an ELF file, but not a module"),
    (errno.ENOEXEC, "dummy: livepatch support is disabled", BadModule, "live patch"),
    (errno.ENOEXEC, "module: dummy: Unknown rela relocation: 9", BadModule, "invalid relocations"),
    (errno.ENOEXEC, "", BadModule, "is not one the kernel can use"),
    (
        errno.ENOEXEC,
        "dummy: exports duplicate symbol fat_scan (owned by fat)",
        Conflict,
        "beside fat: both export fat_scan",
    ),
    (errno.ETXTBSY, "", Busy, "is currently being written"),
    # symbols
    (errno.ENOENT, "dummy: Unknown symbol fat_detach (err -2)", UnknownSymbol, "needs fat_detach"),
    (errno.EINVAL, "dummy: Unknown symbol fat_detach (err -22)", UnknownSymbol, "needs fat_detach"),
    (
        errno.EINVAL,
        "dummy: module dummy uses symbol usb_x from namespace USB_STORAGE, but does not import it.",
        UnknownSymbol,
        "uses usb_x without importing",
    ),
    (errno.EBUSY, "dummy: gave up waiting for init of module fat.", Stuck, "needs fat, whose init"),
    (errno.EINVAL, "dummy: module is already loaded", Builtin, "built into the kernel"),
    # parameters
    (errno.EINVAL, "dummy: `abc' invalid for parameter `numdummies'", BadParameter, "for parameter numdummies"),
    (errno.ERANGE, "dummy: `999' invalid for parameter `numdummies'", BadParameter, "for parameter numdummies"),
    (errno.ENOSPC, "dummy: `xxx' too large for parameter `text'", BadParameter, "for parameter text"),
    (errno.EINVAL, "dummy: can only take 4 arguments", BadParameter, "more values than it takes"),
    # init
    (errno.ENODEV, "", NoDevice, "(ENODEV)"),
    (errno.ENXIO, "", NoDevice, "(ENXIO)"),
    (errno.EOPNOTSUPP, "dummy: no VMX", NoDevice, "(EOPNOTSUPP)"),
    (errno.ENOMEM, "dummy: Could not allocate 64 bytes percpu data", InitFailed, "no memory left"),
    (
        errno.EIO,
        "dummy: the flux capacitor is not charged",
        InitFailed,
        "returned EIO; see the kernel log",
    ),
    (errno.EIO, "", InitFailed, "returned EIO, with no further message"),
    (errno.EINVAL, "", InitFailed, "returned EINVAL"),
    (errno.ENOENT, "", InitFailed, "returned ENOENT"),
    (errno.ENOENT, "x: Direct firmware load for a/b.bin failed with error -2", InitFailed, "firmware it needs"),
    (errno.EBUSY, "", InitFailed, "returned EBUSY"),
    (errno.EEXIST, "", InitFailed, "returned EEXIST"),
    (513, "", InitFailed, "returned error 513"),
]


@pytest.mark.parametrize(("code", "line", "wanted", "words"), ROWS)
def test_load(code: int, line: str, wanted: type[KmoddError], words: str) -> None:
    log = ("unrelated: something else", line) if line else ()
    found = load(code, *log, signed=True)
    assert type(found) is wanted
    assert words in found.message
    assert found.module == "dummy"
    assert found.evidence.errno == code
    assert found.evidence.kernel_log == log[1:]
    assert found.evidence.hint != ""
    assert "/" not in found.message.replace("init/exit", "")


def test_every_errno_of_the_tables_has_a_row_here() -> None:
    assert set(LOAD_TABLE) <= {code for code, *_ in ROWS}
    assert set(UNLOAD_TABLE) == {errno.EPERM, errno.EAGAIN, errno.EBUSY, errno.ENOSYS}


# --- EPERM: causes that the log does not show ----------------------------------------------------------------------------


def test_no_capability() -> None:
    for found in (load(errno.EPERM, capable=False), unload(errno.EPERM, capable=False)):
        assert type(found) is NotPermitted
        assert "CAP_SYS_MODULE" in found.message


def test_modules_disabled() -> None:
    for found in (
        load(errno.EPERM, facts=facts(modules_disabled=True)),
        unload(errno.EPERM, facts=facts(modules_disabled=True)),
    ):
        assert type(found) is ModulesDisabled
        assert found.evidence.errno == errno.EPERM


def test_command_line_blacklist_without_a_line() -> None:
    found = load(errno.EPERM, facts=facts(command_line="ro module_blacklist=dummy"))
    assert type(found) is DisabledByPolicy
    assert (found.evidence.file, found.evidence.rule) == ("/proc/cmdline", "module_blacklist=dummy")


def test_lockdown_whose_line_was_rate_limited() -> None:
    assert type(load(errno.EPERM, facts=facts(lockdown="integrity"), signed=False)) is Lockdown
    assert type(load(errno.EPERM, facts=facts(lockdown="integrity"), signed=True)) is NotPermitted


# --- details -----------------------------------------------------------------------------------------------------------


def test_all_symbols_are_evidence_and_four_are_named() -> None:
    lines = [f"dummy: Unknown symbol s{i} (err -2)" for i in range(6)]
    found = load(errno.ENOENT, *lines, *lines)
    assert found.evidence.symbols == ("s0", "s1", "s2", "s3", "s4", "s5")
    assert "needs s0, s1, s2, s3 and 2 more" in found.message


def test_symbol_that_no_compiler_makes_reaches_no_error_text() -> None:
    assert type(load(errno.ENOENT, "dummy: Unknown symbol \\x1b[31m/etc (err -2)")) is InitFailed


def test_missing_file_is_distinguished_from_a_missing_symbol() -> None:
    assert type(load(errno.ENOENT, file_missing=True)) is BadModule


def test_bad_value_from_configuration_names_the_line() -> None:
    line = "dummy: `abc' invalid for parameter `num_dummies'"
    options = (rule("options", "dummy", "x=1", 3), rule("options", "dummy", "num-dummies=abc", 4))
    found = load(errno.EINVAL, line, options=options)
    assert (found.evidence.file, found.evidence.line, found.evidence.parameter) == (FILE, 4, "num_dummies")
    given = load(errno.EINVAL, line, options=options, given=("num_dummies",))
    assert given.evidence.file == ""


def test_a_line_of_a_closed_file_is_named_and_not_quoted() -> None:
    closed = replace(rule("options", "dummy", "num-dummies=abc password=hunter2", 4), public=False)
    found = load(errno.EINVAL, "dummy: `abc' invalid for parameter `num_dummies'", options=(closed,))
    assert (found.evidence.file, found.evidence.line, found.evidence.rule) == (FILE, 4, "options dummy …")


def test_only_the_last_lines_are_kept() -> None:
    found = load(errno.EIO, *(f"dummy: {i}" for i in range(100)))
    assert (len(found.evidence.kernel_log), found.evidence.kernel_log[-1]) == (32, "dummy: 99")


# --- unload ------------------------------------------------------------------------------------------------------------

MOUNT = User("mount", "/mnt", "/dev/loop0")


@pytest.mark.parametrize(
    ("module", "users", "sentence"),
    [
        (replace(LIVE, references=1, holders=names("vfat")), (), "dummy is used by vfat"),
        (replace(LIVE, references=2, holders=names("a", "b")), (), "dummy is used by a, b"),
        (replace(LIVE, references=1), (), "dummy is held by 1 reference"),
        (replace(LIVE, references=1), (MOUNT,), "dummy is in use by 1 mount"),
        (
            replace(LIVE, references=3, holders=names("a")),
            (MOUNT, MOUNT, User("process", "cat", "7")),
            "dummy is used by a and by 2 mounts, 1 process",
        ),
        (LIVE, (), "dummy is in use"),
    ],
)
def test_in_use(module: LoadedModule, users: tuple[User, ...], sentence: str) -> None:
    found = unload(errno.EAGAIN, module, users=users)
    assert type(found) is InUse
    assert found.message == sentence
    assert found.evidence.holders == module.holders
    assert found.evidence.users == advised(users)
    assert found.evidence.hint != ""


def test_permanent() -> None:
    assert type(unload(errno.EBUSY, replace(LIVE, permanent=True))) is NotRemovable


@pytest.mark.parametrize(("state", "doing"), [(State.COMING, "loaded"), (State.GOING, "unloaded")])
@pytest.mark.parametrize("code", [errno.EBUSY, errno.EAGAIN])
def test_not_live(code: int, state: State, doing: str) -> None:
    found = unload(code, replace(LIVE, state=state))
    assert type(found) is Busy
    assert f"being {doing}" in found.message


def test_busy_with_references_is_in_use() -> None:
    assert type(unload(errno.EBUSY, replace(LIVE, references=1))) is InUse


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        (errno.EPERM, NotPermitted),
        (errno.ENOSYS, NotRemovable),
        (errno.EFAULT, NotRemovable),
    ],
)
def test_other_refusals(code: int, wanted: type[KmoddError]) -> None:
    assert type(unload(code)) is wanted


@pytest.mark.parametrize(("code", "module"), [(errno.EAGAIN, None), (errno.EBUSY, None), (errno.EBUSY, LIVE)])
def test_what_was_in_the_way_is_over(code: int, module: LoadedModule | None) -> None:
    """Between the refusal and the look at what is to blame somebody else's modprobe has come to its end."""
    found = unload(code, module)
    assert type(found) is Busy
    assert "was being loaded or unloaded by another process" in found.message


# --- no answer -----------------------------------------------------------------------------------------------------------


def test_timed_out() -> None:
    found = diagnose(replace(LOAD, outcome=Outcome("timed-out", 0, 30_000_000, worker=77)))
    assert type(found) is TimedOut
    assert found.message == "the init of dummy has not returned after 30 s; dummy stays locked until it does"
    assert found.evidence.errno is None
    assert "/proc/77/stack" in found.evidence.hint


def test_timed_out_exit() -> None:
    assert "the exit of dummy" in diagnose(replace(UNLOAD, outcome=Outcome("timed-out"))).message


def test_crashed_and_left_half_loaded() -> None:
    found = diagnose(replace(LOAD, outcome=Outcome("crashed"), module=replace(LIVE, state=State.COMING)))
    assert type(found) is Crashed
    assert found.message == "the init of dummy crashed the kernel; dummy stays partially loaded until reboot"


def test_crashed_without_a_trace() -> None:
    found = diagnose(replace(UNLOAD, outcome=Outcome("crashed")))
    assert found.message == "the exit of dummy crashed the kernel"


def test_of_an_oops_the_beginning_is_kept() -> None:
    lines = [
        "noise",
        "BUG: kernel NULL pointer dereference, address: 0000000000000000",
        *(f"RAX: {i}" for i in range(90)),
    ]
    found = load(errno.EIO, *lines).evidence.kernel_log
    assert (len(found), found[0], found[-1]) == (32, lines[1], "RAX: 30")


def test_of_what_the_kernel_logged_only_what_is_about_the_call_is_kept() -> None:
    others = (
        "agent[77]: segfault at 7f1c ip 0000 sp 0000 error 4 in secret[5000+1000]",
        "traps: agent[77] general protection fault ip:0 sp:0 error:0 in secret",
        "x dummy: y[77]: segfault at 0 ip 0 sp 0 error 4",
        'audit: type=1400 apparmor="DENIED" operation="open" name="/secret" pid=77 comm="dummy"',
        "EXT4-fs (sda1): mounted filesystem secret",
        "dummy2: secret",
    )
    own = ("dummy: not today", "e1000 0000:00:03.0 dummy: no link", "Loading of unsigned module is rejected")
    found = diagnose(replace(LOAD, outcome=Outcome("done", errno.EIO, worker=9), log=(*others, *own, *others)))
    assert found.evidence.kernel_log == own
    held = unload(errno.EAGAIN, replace(LIVE, references=1), log=(*others, *own))
    assert held.evidence.kernel_log == own


def test_an_oops_of_another_process_is_not_kept() -> None:
    def oops(pid: int) -> tuple[str, ...]:
        return (
            "BUG: unable to handle page fault",
            f"CPU: 0 PID: {pid} Comm: x",
            f"RIP: {pid}",
            "---[ end trace 0 ]---",
        )

    crash = replace(LOAD, outcome=Outcome("crashed", worker=9))
    segfault = "agent[77]: segfault at 7f1c ip 0000 sp 0000 error 4 in secret[5000+1000]"
    mixed = (*oops(77), *oops(9)[:2], segfault, *oops(9)[2:], "secret of others")
    assert diagnose(replace(crash, log=mixed)).evidence.kernel_log == oops(9)
    assert diagnose(replace(crash, log=oops(77))).evidence.kernel_log == ()


def test_empty_file_of_which_the_kernel_says_nothing() -> None:
    found = load(errno.EINVAL, file_fault="the file of module dummy is empty")
    assert (type(found), found.message) == (BadModule, "the file of module dummy is empty")
    assert isinstance(load(errno.EINVAL), InitFailed)
    assert isinstance(
        load(errno.EINVAL, "dummy: I do not want", file_fault="the file of module dummy is odd"), InitFailed
    )


def test_init_that_answers_what_the_loader_could_have() -> None:
    taint = "dummy: loading out-of-tree module taints kernel."
    assert isinstance(load(errno.ENOEXEC, taint, "dummy: not today"), InitFailed)
    assert isinstance(load(errno.ENOEXEC, taint), BadModule)
    assert isinstance(load(errno.ENOEXEC, "dummy: not today", "Invalid ELF header magic: != ELF"), BadModule)


# --- the key that is missing -------------------------------------------------------------------------------------------

KERNEL = "Build time autogenerated kernel key"


def test_the_signer_and_the_kernels_keys_are_named() -> None:
    said = key_hint("ACME modules", (KERNEL, "DKMS module signing key"))
    assert "the key of its signer, 'ACME modules', is not trusted by the kernel" in said
    assert f"it trusts '{KERNEL}', 'DKMS module signing key'" in said
    assert "mokutil --import CERT" in said


def test_a_known_signer_points_to_the_file() -> None:
    assert "was changed after signing" in key_hint(KERNEL, (KERNEL,))


def test_an_unsigned_module_has_to_be_signed_first() -> None:
    assert key_hint("", (KERNEL,)) == ENROL


def test_what_a_file_says_is_bounded_and_printable() -> None:
    said = key_hint("evil\x1b[31m\u202e" + "x" * 500, tuple(f"key {number}" for number in range(20)))
    assert said.isprintable()
    assert "x" * SIGNER_MAX not in said
    assert said.count("'key ") == KEYS_LISTED
    assert f"and {20 - KEYS_LISTED} more" in said
