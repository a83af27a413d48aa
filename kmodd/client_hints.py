# SPDX-License-Identifier: LGPL-2.1-or-later
"""What to do about an error when the daemon gave no hint of its own, by class."""

from kmodd import errors
from kmodd.errors import KmoddError

_HINTS: dict[type[KmoddError], str] = {
    errors.Failed: "journalctl -u kmodd says more",
    errors.NoSuchModule: "kmodctl list --state all shows every module of this kernel",
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
    errors.DisabledByPolicy: "change the rule, or try once with --override-policy",
    errors.LimitsExceeded: "wait until earlier requests are done",
    errors.WrongKernel: "rebuild the module for this kernel",
    errors.BadSignature: "the file was changed after it was signed, or its key is not enrolled: install it again",
    errors.Shadows: "kmodctl store import FILE --shadow lets it go before the kernel's own",
    errors.Lockdown: "the kernel only takes modules signed with a key it trusts",
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
    text = _HINTS.get(type(error), "")
    if isinstance(error, errors.DisabledByPolicy) and ": blacklist " not in error.evidence.rule:
        text = "change the rule: only a blacklist can be overridden"
    return "" if "{module}" in text and not module else text.format(module=module)
