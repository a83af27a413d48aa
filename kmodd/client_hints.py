# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to do about an error when the daemon gave no hint of its own, by class."""

from kmodd import errors
from kmodd.errors import KmoddError
from kmodd.model.configuration import OwnFile
from kmodd.model.store import ENROL

_HINTS: dict[type[KmoddError], str] = {
    errors.Failed: "journalctl -u kmodd says more",
    errors.NoSuchModule: "kmodctl list --state all shows every module of this kernel",
    errors.NoSuchVersion: "kmodctl store list {module} shows the versions there are",
    errors.NoSuchParameter: "kmodctl show {module} lists its parameters",
    errors.UnknownParameter: "kmodctl show {module} lists its parameters",
    errors.BadParameter: "kmodctl show {module} lists its parameters and their types",
    errors.ReadOnlyParameter: "kmodctl reload {module} NAME=VALUE sets it while loading",
    errors.NotLoaded: "kmodctl load {module} loads it",
    errors.ModuleTreeMissing: "install the modules of the running kernel, or reboot into the installed one",
    errors.AccessDenied: "run it as root, or ask for a polkit rule",
    errors.InteractiveAuthorizationRequired: "run it in a terminal where polkit can ask for a password, or as root",
    errors.InUse: "kmodctl why {module} shows what to stop first",
    errors.Busy: "kmodctl why {module} shows what is under way; try again when it is done",
    errors.Builtin: "what is built in needs no loading and cannot be removed",
    errors.NotRemovable: "only a reboot removes it",
    errors.LimitsExceeded: "wait until earlier requests are done",
    errors.WrongKernel: "rebuild the module for this kernel",
    errors.Shadows: "kmodctl store import --shadow FILE, if it is meant to take that one's place",
    errors.BadSignature: "the file was changed after it was signed, or its key is not enrolled: install it again",
    errors.Lockdown: (
        "sign it with a key that the kernel trusts, or enrol yours: `mokutil --import CERT` (in DER form), then reboot and confirm"
    ),
    errors.ModulesDisabled: "kernel.modules_disabled can only be undone by a reboot",
    errors.Stuck: "kmodctl reset-failed {module} clears it once the kernel let go; only a reboot forces it",
    errors.TimedOut: "kmodctl why {module} shows whether it is still under way",
    errors.Crashed: "the kernel log has the trace: journalctl -k; plan a reboot",
    errors.Unavailable: "see: systemctl status kmodd",
}


def hint_for(error: KmoddError, module: str) -> str:
    """The daemon's own hint first; empty when there is nothing to add."""
    if error.evidence.hint:
        return error.evidence.hint
    if isinstance(error, (errors.BadSignature, errors.Lockdown)) and "is not signed" in error.message:
        return ENROL
    text = _unblock(error.evidence.rule) if isinstance(error, errors.DisabledByPolicy) else _HINTS.get(type(error), "")
    return "" if "{module}" in text and not module else text.format(module=module)


def _unblock(rule: str) -> str:
    """`rule` is spelled `file:line: text`; kmodd's own file is not for editing."""
    ours = rule.startswith(OwnFile.BLACKLIST)
    change = "kmodctl config blacklist {module} --off takes the rule away" if ours else "change the rule"
    if ": blacklist " in rule:
        return f"{change}, or try once with --override-policy"
    return change if ours else f"{change}: only a blacklist can be overridden"
