# SPDX-License-Identifier: LGPL-2.1-or-later
"""The one table of errors: Python class, D-Bus name, exit code of kmodctl, HTTP status.

An error's message is one sentence a person can act on, made of constant text and canonical names. The evidence beside it
(errno, the kernel's own lines, holders, users, a hint) goes to the journal, to kmodctl and to `Explain`, never into the
D-Bus error itself.
"""

import errno
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

PREFIX = "org.kmodd1.Error."
FREEDESKTOP = "org.freedesktop.DBus.Error."
# Of two names for one number, those that Linux itself says; Python says the others.
_SAID = {errno.EOPNOTSUPP: "EOPNOTSUPP", errno.EDEADLK: "EDEADLK"}


def errno_name(number: int) -> str:
    """The symbol of an error number, such as `EINVAL`."""
    return _SAID.get(number) or errno.errorcode.get(number, f"error {number}")


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was found out about a failure; everything is optional."""

    errno: int | None = None
    kernel_log: tuple[str, ...] = ()
    """The kernel's own lines about it, oldest first, control characters escaped."""
    hint: str = ""
    """What to do about it, one sentence or a command."""
    holders: tuple[str, ...] = ()
    """Modules that hold the module."""
    users: tuple[tuple[str, str, str], ...] = ()
    """(kind, name, detail) as in `Explain`."""
    file: str = ""
    """The configuration file of the rule that decided."""
    line: int = 0
    rule: str = ""
    symbols: tuple[str, ...] = ()
    parameter: str = ""


@dataclass(eq=False)
class KmoddError(Exception):
    """Root of every error a caller can see."""

    message: str
    module: str = field(default="", kw_only=True)
    argument: str = field(default="", kw_only=True)
    evidence: Evidence = field(default_factory=Evidence, kw_only=True)
    touched: tuple[str, ...] = field(default=(), kw_only=True)
    """Modules that stay changed although the operation failed."""
    aftermath: tuple[tuple[str, str], ...] = field(default=(), kw_only=True)
    """(module, clause) for what undoing left otherwise than it was; the message ends with these clauses."""

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500
    title: ClassVar[str] = "internal error"
    namespace: ClassVar[str] = PREFIX

    def __post_init__(self) -> None:
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message

    def after(self, aftermath: tuple[tuple[str, str], ...]) -> Self:
        """The same error with this aftermath in place of the one it has."""
        cause = self.message.removesuffix(_joined(self.aftermath))
        return replace(self, message=cause + _joined(aftermath), aftermath=aftermath)

    @classmethod
    def name(cls) -> str:
        """The short name, as in the contract's table and in KMODD_ERROR=."""
        return cls.__name__

    @classmethod
    def bus_name(cls) -> str:
        """The full D-Bus error name."""
        return cls.namespace + cls.__name__


def _joined(aftermath: tuple[tuple[str, str], ...]) -> str:
    return "".join(f"; {clause}" for _, clause in aftermath)


class Failed(KmoddError):
    """A bug of ours; the caller learns nothing else."""


class InvalidArgs(KmoddError):
    exit_code, http_status, title, namespace = 2, 400, "invalid argument", FREEDESKTOP


class _NotFound(KmoddError):
    exit_code, http_status = 3, 404


class NoSuchModule(_NotFound):
    title = "no such module"


class NoSuchParameter(_NotFound):
    title = "no such parameter"


class NoSuchVersion(_NotFound):
    title = "no such version"


class NoSuchEndpoint(_NotFound):
    title = "no such endpoint for notifications"


class NotLoaded(_NotFound):
    title = "module is not loaded"


class ModuleTreeMissing(_NotFound):
    title = "no module tree for the running kernel"


class AccessDenied(KmoddError):
    exit_code, http_status, title, namespace = 4, 403, "access denied", FREEDESKTOP


class InteractiveAuthorizationRequired(KmoddError):
    exit_code, http_status, title, namespace = 4, 401, "interactive authorization required", FREEDESKTOP


class _Conflicting(KmoddError):
    exit_code, http_status = 5, 409


class InUse(_Conflicting):
    title = "module is in use"


class Builtin(_Conflicting):
    title = "module is built into the kernel"


class NotRemovable(_Conflicting):
    title = "module cannot be removed"


class Conflict(_Conflicting):
    title = "conflicting state"


class Busy(_Conflicting):
    title = "another operation is under way"


class DisabledByPolicy(KmoddError):
    exit_code, http_status, title = 6, 409, "disabled by policy"


class LimitsExceeded(KmoddError):
    exit_code, http_status, title, namespace = 7, 429, "limit exceeded", FREEDESKTOP


class _BadFile(KmoddError):
    exit_code, http_status = 8, 422


class BadModule(_BadFile):
    title = "not a usable module file"


class WrongKernel(_BadFile):
    title = "module was built for another kernel"


class BadSignature(_BadFile):
    title = "signature does not verify"


class UnknownSymbol(_BadFile):
    title = "module needs a symbol the kernel does not have"


class Shadows(_BadFile):
    title = "module would shadow one of the kernel's own"


class _ParameterFault(KmoddError):
    exit_code, http_status = 9, 422


class BadParameter(_ParameterFault):
    title = "parameter value refused"


class UnknownParameter(_ParameterFault):
    title = "unknown parameter"


class ReadOnlyParameter(_ParameterFault):
    title = "parameter is read-only"


class _RefusedByModule(KmoddError):
    exit_code, http_status = 10, 502


class NoDevice(_RefusedByModule):
    title = "no device for this module"


class InitFailed(_RefusedByModule):
    title = "module failed to initialise"


class _Forbidden(KmoddError):
    exit_code, http_status = 11, 409


class Lockdown(_Forbidden):
    title = "kernel lockdown"


class ModulesDisabled(_Forbidden):
    title = "module loading is disabled until reboot"


class NotPermitted(_Forbidden):
    title = "not permitted by the kernel"


class _Lost(KmoddError):
    exit_code, http_status = 12, 504


class TimedOut(_Lost):
    title = "timed out"


class Stuck(_Lost):
    title = "stuck in the kernel"


class Crashed(_Lost):
    title = "crashed the kernel"


class Unavailable(KmoddError):
    """Client side: the daemon is not there."""

    exit_code, http_status, title = 13, 503, "kmodd is not available"


def _leaves(root: type[KmoddError]) -> list[type[KmoddError]]:
    found: list[type[KmoddError]] = []
    for child in root.__subclasses__():
        found.extend(_leaves(child) if child.__name__.startswith("_") else [child])
    return found


ERRORS: Mapping[str, type[KmoddError]] = {error.bus_name(): error for error in _leaves(KmoddError)}
"""Every error by its D-Bus name; clients rebuild exceptions with it."""

INTERNAL = "internal error, see the journal"
"""All that a caller learns of a bug of ours."""
