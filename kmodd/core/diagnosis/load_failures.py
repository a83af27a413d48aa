# SPDX-License-Identifier: LGPL-2.1-or-later
"""The causes of finit_module's errors, one function per cause, in the order of the checks in kernel/module/main.c.

Each returns an error if the evidence shows its cause, else None; the last one of each errno always returns one. Kernel
messages are those of Linux 6.1, matched anywhere in a line so that a prefix added later does not matter.
"""

import errno as codes
import re
from collections.abc import Callable, Collection, Mapping

from kmodd.core.diagnosis.evidence import StepEvidence
from kmodd.core.planning.insert import busy, modules_disabled
from kmodd.core.planning.parameters import read_options
from kmodd.core.planning.policy import command_line_rule
from kmodd.errors import (
    BadModule,
    BadParameter,
    BadSignature,
    Builtin,
    Busy,
    Conflict,
    DisabledByPolicy,
    InitFailed,
    KmoddError,
    Lockdown,
    NoDevice,
    NotPermitted,
    Stuck,
    UnknownSymbol,
    WrongKernel,
)
from kmodd.model import State, StepAction
from kmodd.model.store import ENROL
from kmodd.text import shown

SIGNER_MAX = 64
KEYS_LISTED = 4


def key_hint(signer: str, keys: Collection[str]) -> str:
    """What to do, with the signer's name and the names of the keys that the kernel holds; both may be unknown (empty)."""
    if not signer:
        return ENROL
    name = shown(signer, SIGNER_MAX)
    if signer in keys:
        return (
            f"the kernel has the key of its signer, '{name}': another key of this name signed it, or the file was changed "
            "after signing; sign it again or reinstall its package"
        )
    listed = [f"'{shown(key, SIGNER_MAX)}'" for key in list(keys)[:KEYS_LISTED]]
    more = f" and {len(keys) - KEYS_LISTED} more" if len(keys) > KEYS_LISTED else ""
    trusted = f"; it trusts {', '.join(listed)}{more}" if listed else ""
    return (
        f"the key of its signer, '{name}', is not trusted by the kernel{trusted}; enrol its certificate with "
        "`mokutil --import CERT` (in DER form), reboot and confirm, or sign the module with a key the kernel has"
    )


Cause = Callable[[StepEvidence], KmoddError | None]

# Symbols reach error texts, so only what a compiler can have made is taken for one.
_SYMBOL = re.compile(r"Unknown symbol ([A-Za-z0-9_.$]{1,128}) \(err -?\d+\)")
_NAMESPACE = re.compile(
    r"uses symbol ([A-Za-z0-9_.$]{1,128}) from namespace ([A-Za-z0-9_]{1,64}),? but does not import it"
)
_PARAMETER = re.compile(r"(?:invalid|too large) for parameter [`'](?:[A-Za-z0-9_]+\.)?([A-Za-z0-9_.-]+)'")
_OWNER = re.compile(r"gave up waiting for init of module ([A-Za-z0-9_]+)")
_DUPLICATE = re.compile(r"exports duplicate symbol ([A-Za-z0-9_.$]{1,128}) \(owned by ([A-Za-z0-9_]+)\)")
_FIRMWARE = re.compile(r"(?:Direct firmware load for|failed to load firmware:?|firmware: failed to load) (\S+)")
_TOO_MANY = re.compile(r"can only take \d+ arguments")
_LSM = re.compile(r"LoadPin|avc:\s+denied|apparmor=\"DENIED\"|\bima\b|integrity:|Yama|SMACK", re.IGNORECASE)


# --- EPERM: five causes ------------------------------------------------------------------------------------------------


def _verb(e: StepEvidence) -> str:
    return "load" if e.step.action is StepAction.INSERT else "unload"


def no_capability(e: StepEvidence) -> KmoddError | None:
    """may_init_module() and delete_module() ask for CAP_SYS_MODULE first."""
    if e.capable:
        return None
    return NotPermitted(
        f"kmodd may not {_verb(e)} {e.step.module}: its worker runs without CAP_SYS_MODULE",
        module=e.step.module,
        evidence=e.facts_for("systemctl cat kmodd-worker@.service: CapabilityBoundingSet= has to name CAP_SYS_MODULE"),
    )


def disabled_until_reboot(e: StepEvidence) -> KmoddError | None:
    """Both then look at modules_disabled."""
    if not e.facts.modules_disabled:
        return None
    error = modules_disabled(e.step.module)
    error.evidence = e.facts_for(error.evidence.hint)
    return error


def blacklisted_at_boot(e: StepEvidence) -> KmoddError | None:
    """blacklisted(): `Module softdog is blacklisted`."""
    rule = command_line_rule(e.step.module, e.facts.command_line)
    if rule is None and not e.line("Module", "is blacklisted"):
        return None
    return DisabledByPolicy(
        f"{e.step.module} cannot be used: the kernel command line blacklists it (module_blacklist=)",
        module=e.step.module,
        evidence=e.facts_for("remove it from module_blacklist= in the boot loader's configuration", rule=rule),
    )


def locked_down(e: StepEvidence) -> KmoddError | None:
    """security_locked_down(): `Lockdown: …: unsigned module loading is restricted`, at most a few times (ratelimited)."""
    if e.line("Lockdown:", "unsafe module parameters"):
        return Lockdown(
            f"the kernel is locked down and does not let {e.step.module} have this parameter",
            module=e.step.module,
            evidence=e.facts_for("load it without the parameter"),
        )
    if not e.line("Lockdown:") and (e.facts.lockdown == "none" or e.signed):
        return None
    return Lockdown(
        f"the kernel is locked down and does not load {e.step.module}, whose file has no signature it trusts",
        module=e.step.module,
        evidence=e.facts_for(key_hint(e.signer, e.keys)),
    )


def security_module(e: StepEvidence) -> KmoddError | None:
    """security_kernel_read_file() and its relatives: LoadPin, SELinux, AppArmor, IMA."""
    if not any(_LSM.search(line) for line in e.log):
        return None
    return NotPermitted(
        f"a security module of the kernel does not allow loading {e.step.module}",
        module=e.step.module,
        evidence=e.facts_for("cat /sys/kernel/security/lsm; its log shows the rule"),
    )


def not_permitted(e: StepEvidence) -> KmoddError | None:
    """Nothing known forbids it: a silent security module, or the module's own init()."""
    if e.own_lines:
        return None
    return NotPermitted(
        f"the kernel does not permit loading {e.step.module}, and gives no reason",
        module=e.step.module,
        evidence=e.facts_for("cat /sys/kernel/security/lsm; a security module or the module's own init refused"),
    )


# --- the file ----------------------------------------------------------------------------------------------------------


def bad_signature(e: StepEvidence) -> KmoddError | None:
    """mod_verify_sig() and module_sig_check(); a signature that does not fit is not logged at all."""
    line = e.line("oading of", "is rejected")
    hint = "reinstall the module's package, or sign it with a key the kernel trusts"
    if "unsigned" in line:
        why, hint = "it is not signed, and this kernel loads signed modules only", key_hint("", ())
    elif "unavailable key" in line or e.errno == codes.ENOKEY:
        why, hint = "it is signed with a key the kernel does not know", key_hint(e.signer, e.keys)
    elif "unsupported crypto" in line or e.errno == codes.ENOPKG:
        why = "it is signed by a method the kernel does not support"
    elif e.errno == codes.EKEYEXPIRED:
        why = "the key it is signed with has expired"
    elif e.errno == codes.EKEYREVOKED:
        why = "the key it is signed with was revoked"
    else:
        why = "its signature does not match the file, which was changed after signing"
    return BadSignature(
        f"the kernel refuses {e.step.module}: {why}",
        module=e.step.module,
        evidence=e.facts_for(hint),
    )


def wrong_version(e: StepEvidence) -> KmoddError | None:
    """check_modinfo(): `version magic '…' should be '…'`; check_version(): `disagrees about version of symbol …`."""
    if e.line("version magic", "should be"):
        why = "built with other options than the running kernel (version magic differs)"
    elif e.line("disagrees about version of symbol") or e.line("no symbol version for"):
        why = "built against another kernel (symbol versions differ)"
    elif e.line("failed to validate module", "BTF"):
        why = "built against another kernel (its type information does not match)"
    else:
        return None
    return WrongKernel(
        f"{e.step.module} was {why}",
        module=e.step.module,
        evidence=e.facts_for(f"rebuild it for {e.facts.release}, or install the version for it"),
    )


def duplicate_symbol(e: StepEvidence) -> KmoddError | None:
    """verify_exported_symbols(): `exports duplicate symbol … (owned by …)`."""
    match = _first(_DUPLICATE, e)
    if match is None:
        return None
    return Conflict(
        f"{e.step.module} cannot be loaded beside {match[2]}: both export {match[1]}",
        module=e.step.module,
        evidence=e.facts_for(f"kmodctl unload {match[2]}", symbols=(match[1],)),
    )


_ELF = (
    (("Invalid architecture in ELF header",), "is for another processor architecture"),
    (("Invalid ELF header magic",), "is not a module (not an ELF file)"),
    (("Invalid ELF header type",), "is an ELF file, but not a module"),
    (("Invalid ELF header len",), "is cut short"),
    (("Invalid ELF section header overflow",), "is cut short"),
    (("Module len", "truncated"), "is cut short"),
    (("Invalid ELF section",), "is damaged (invalid section headers)"),
    (("ELF Spec violation",), "is damaged (invalid section headers)"),
    (("module has no symbols",), "was stripped of its symbols"),
    (("No module found in object",), "is an ELF file, but not a module"),
    (("livepatch support is disabled",), "is a live patch, which this kernel does not support"),
    (("relocation",), "is damaged (invalid relocations)"),
    (("decompress",), "is compressed in an unsupported format"),
)


def bad_file(e: StepEvidence) -> KmoddError | None:
    """elf_validity_check() and later checks, distinguished by the kernel's message."""
    what = next((text for words, text in _ELF if e.line(*words)), "")
    if not what and e.init_lines:
        return None  # init() returned it, and logged why
    sentence = f"the file of {e.step.module} {what or 'is not one the kernel can use'}"
    return BadModule(
        (not what and e.file_fault) or sentence,
        module=e.step.module,
        evidence=e.facts_for("reinstall the package the file comes from: dpkg --search, then apt install --reinstall"),
    )


def bad_file_without_a_word(e: StepEvidence) -> KmoddError | None:
    """kernel_read_file() answers EINVAL for an empty file, and logs nothing."""
    return bad_file(e) if e.file_fault and not e.log else None


def file_missing(e: StepEvidence) -> KmoddError | None:
    """The index names a file that is not there."""
    if not e.file_missing:
        return None
    return BadModule(
        f"the file of {e.step.module} is in the index, but cannot be read",
        module=e.step.module,
        evidence=e.facts_for("depmod -a rebuilds the index; otherwise reinstall the kernel's package"),
    )


def file_busy(e: StepEvidence) -> KmoddError | None:
    """kernel_read_file() denies files that are open for writing."""
    return Busy(
        f"the file of {e.step.module} is currently being written; try again",
        module=e.step.module,
        evidence=e.facts_for("an installation is under way: wait for the package manager"),
    )


# --- what it needs -----------------------------------------------------------------------------------------------------


def dependency_hangs(e: StepEvidence) -> KmoddError | None:
    """resolve_symbol_wait() waits 30 seconds for a module in `coming`."""
    match = _first(_OWNER, e)
    if match is None:
        return None
    return Stuck(
        f"{e.step.module} needs {match[1]}, whose init has not returned",
        module=e.step.module,
        evidence=e.facts_for(f"kmodctl why {match[1]}"),
    )


def held_by_others(e: StepEvidence) -> KmoddError | None:
    """add_unformed_module(): EEXIST for one that is live, EBUSY for one that is going."""
    if e.module is None or e.module.state is State.LIVE:
        return None
    error = busy(e.step.module, e.module.state)
    error.evidence = e.facts_for(error.evidence.hint)
    return error


def unknown_symbol(e: StepEvidence) -> KmoddError | None:
    """simplify_symbols(): `Unknown symbol … (err -2)`; verify_namespace_is_imported() for namespaces."""
    namespaces = {match[1]: match[2] for line in e.log if (match := _NAMESPACE.search(line))}
    symbols = tuple(dict.fromkeys([match[1] for line in e.log if (match := _SYMBOL.search(line))] + list(namespaces)))
    if not symbols:
        return None
    listed = ", ".join(symbols[:4]) + (f" and {len(symbols) - 4} more" if len(symbols) > 4 else "")
    if namespaces:
        sentence = f"{e.step.module} uses {listed} without importing the symbol namespace"
        hint = "; ".join(f"MODULE_IMPORT_NS({space})" for space in dict.fromkeys(namespaces.values()))
    else:
        sentence = f"{e.step.module} needs {listed}, which neither the kernel nor a loaded module provides"
        hint = "depmod -a finds missing dependencies; otherwise rebuild it for this kernel (GPL-only symbols need a GPL module)"
    return UnknownSymbol(sentence, module=e.step.module, evidence=e.facts_for(hint, symbols=symbols))


def built_in_already(e: StepEvidence) -> KmoddError | None:
    """mod_sysfs_init(): `module is already loaded`, when the kernel image has one of this name."""
    if not e.line("module is already loaded"):
        return None
    return Builtin(
        f"{e.step.module} is built into the kernel, another of this name cannot be loaded",
        module=e.step.module,
        evidence=e.facts_for(f"kmodctl show {e.step.module}"),
    )


# --- parameters ----------------------------------------------------------------------------------------------------------


def bad_parameter(e: StepEvidence) -> KmoddError | None:
    """parse_args(): ``dummy: `abc' invalid for parameter `numdummies'``, `too large for parameter`."""
    match = _first(_PARAMETER, e)
    if match is None:
        if not any(_TOO_MANY.search(line) for line in e.log):
            return None
        return BadParameter(
            f"a parameter of {e.step.module} was given more values than it takes",
            module=e.step.module,
            evidence=e.facts_for(f"kmodctl show {e.step.module} lists its parameters"),
        )
    parameter = match[1].replace("-", "_")
    rule = None
    if parameter not in e.given:
        rule = next((o.rule for o in reversed(read_options(e.options).assignments) if o.name == parameter), None)
    hint = f"kmodctl show {e.step.module} lists its parameters"
    if rule is not None:
        hint = f"change the options line in {rule.file}, line {rule.line}"
    return BadParameter(
        f"{e.step.module} does not accept this value for parameter {parameter}",
        module=e.step.module,
        argument=parameter,
        evidence=e.facts_for(hint, parameter=parameter, rule=rule),
    )


# --- its own init --------------------------------------------------------------------------------------------------------


def no_device(e: StepEvidence) -> KmoddError | None:
    """ENODEV, ENXIO and EOPNOTSUPP are what drivers answer without hardware."""
    return NoDevice(
        f"{e.step.module} found no device it can drive on this machine ({e.errno_name})",
        module=e.step.module,
        evidence=e.facts_for("lspci -k; lsusb; journalctl -k shows messages of the driver"),
    )


def firmware_missing(e: StepEvidence) -> KmoddError | None:
    """request_firmware(): `Direct firmware load for … failed with error -2`."""
    match = _first(_FIRMWARE, e)
    if match is None:
        return None
    return InitFailed(
        f"{e.step.module} did not find the firmware it needs ({e.errno_name})",
        module=e.step.module,
        evidence=e.facts_for("install the package with the firmware file named in the kernel log: apt-file search"),
    )


def out_of_memory(e: StepEvidence) -> KmoddError | None:
    """ENOMEM, from the loader or from init()."""
    return InitFailed(
        f"the kernel has no memory left to load {e.step.module} (ENOMEM)",
        module=e.step.module,
        evidence=e.facts_for("free -h; journalctl -k"),
    )


def init_failed(e: StepEvidence) -> KmoddError | None:
    """Whatever init() answers, with its own words where it has any."""
    more = "; see the kernel log" if e.own_lines else ", with no further message"
    return InitFailed(
        f"{e.step.module} failed to initialise: its init returned {e.errno_name}{more}",
        module=e.step.module,
        evidence=e.facts_for("journalctl -k; kmodctl log " + e.step.module),
    )


_PERMISSION: tuple[Cause, ...] = (
    no_capability,
    disabled_until_reboot,
    blacklisted_at_boot,
    locked_down,
    security_module,
    not_permitted,
)
LOAD_TABLE: Mapping[int, tuple[Cause, ...]] = {
    codes.EPERM: _PERMISSION,
    codes.EACCES: (security_module, file_missing),
    codes.EKEYREJECTED: (bad_signature,),
    codes.EKEYEXPIRED: (bad_signature,),
    codes.EKEYREVOKED: (bad_signature,),
    codes.ENOKEY: (bad_signature,),
    codes.ENOPKG: (bad_signature,),
    codes.EBADMSG: (bad_signature,),
    codes.ENOEXEC: (wrong_version, duplicate_symbol, bad_file),
    codes.ETXTBSY: (file_busy,),
    codes.ENOENT: (unknown_symbol, file_missing, firmware_missing),
    codes.EINVAL: (bad_parameter, wrong_version, unknown_symbol, built_in_already, bad_file_without_a_word),
    codes.ERANGE: (bad_parameter,),
    codes.ENOSPC: (bad_parameter,),
    codes.EBUSY: (dependency_hangs, held_by_others),
    codes.EEXIST: (held_by_others,),
    codes.ENODEV: (no_device,),
    codes.ENXIO: (no_device,),
    codes.EOPNOTSUPP: (no_device,),
    codes.ENOMEM: (out_of_memory,),
}
"""For each errno its causes, the likeliest by evidence first; `init_failed` follows them all."""


def _first(pattern: re.Pattern[str], e: StepEvidence) -> re.Match[str] | None:
    return next((match for line in e.log if (match := pattern.search(line))), None)
