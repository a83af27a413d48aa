// SPDX-License-Identifier: LGPL-2.1-or-later
// kmodd's errors: the title of each and the hint where the daemon gave none, as of kmodd/errors.py and kmodd/client/replies.py.
// tests/architecture/test_agreement.py compares them.

/** By their names, title and hint; `{module}` stands for a name. */
export const ERRORS = {
  "Failed": ["internal error", "journalctl -u kmodd says more"],
  "InvalidArgs": ["invalid argument", ""],
  "NoSuchModule": ["no such module", "kmodctl list --state all shows every module of this kernel"],
  "NoSuchParameter": ["no such parameter", "kmodctl show {module} lists its parameters"],
  "NoSuchVersion": ["no such version", "kmodctl store list {module} shows the versions there are"],
  "NoSuchEndpoint": ["no such endpoint for notifications", ""],
  "NoSuchResponse": ["no such vulnerability or response", ""],
  "NotLoaded": ["module is not loaded", "kmodctl load {module} loads it"],
  "ModuleTreeMissing": ["no module tree for the running kernel", "install the modules of the running kernel, or reboot into the installed one"],
  "AccessDenied": ["access denied", "run it as root, or ask for a polkit rule"],
  "InteractiveAuthorizationRequired": ["interactive authorization required", "run it in a terminal where polkit can ask for a password, or as root"],
  "InUse": ["module is in use", "kmodctl why {module} shows what to stop first"],
  "Builtin": ["module is built into the kernel", "what is built in needs no loading and cannot be removed"],
  "NotRemovable": ["module cannot be removed", "only a reboot removes it"],
  "Conflict": ["conflicting state", ""],
  "Busy": ["another operation is under way", "kmodctl why {module} shows what is under way; try again when it is done"],
  "DisabledByPolicy": ["disabled by policy", "kmodctl why {module} shows the rule"],
  "LimitsExceeded": ["limit exceeded", "wait until earlier requests are done"],
  "BadModule": ["not a usable module file", ""],
  "WrongKernel": ["module was built for another kernel", "rebuild the module for this kernel"],
  "BadSignature": ["signature does not verify", "the file was changed after it was signed, or its key is not enrolled: install it again"],
  "UnknownSymbol": ["module needs a symbol the kernel does not have", ""],
  "Shadows": ["module would shadow one of the kernel's own", "kmodctl store import --shadow FILE, if it is meant to take that one's place"],
  "BadParameter": ["parameter value refused", "kmodctl show {module} lists its parameters and their types"],
  "UnknownParameter": ["unknown parameter", "kmodctl show {module} lists its parameters"],
  "ReadOnlyParameter": ["parameter is read-only", "kmodctl reload {module} NAME=VALUE sets it while loading"],
  "NoDevice": ["no device for this module", ""],
  "InitFailed": ["module failed to initialise", ""],
  "Lockdown": ["kernel lockdown", "sign it with a key that the kernel trusts, or enrol yours: `mokutil --import CERT` (in DER form), then reboot and confirm"],
  "ModulesDisabled": ["module loading is disabled until reboot", "kernel.modules_disabled can only be undone by a reboot"],
  "NotPermitted": ["not permitted by the kernel", ""],
  "TimedOut": ["timed out", "kmodctl why {module} shows whether it is still under way"],
  "Stuck": ["stuck in the kernel", "kmodctl reset-failed {module} clears it once the call has returned; only a reboot forces it"],
  "Crashed": ["crashed the kernel", "the kernel log has the trace: journalctl -k; plan a reboot"],
  "Unavailable": ["kmodd is not available", "see: systemctl status kmodd"]
};
