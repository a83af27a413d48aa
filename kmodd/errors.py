# SPDX-License-Identifier: LGPL-2.1-or-later
"""The table of errors: Python class, D-Bus name, exit code of kmodctl, HTTP status.

A message is one clause made of constant text and canonical names. Facts are attributes of the evidence beside it (errno,
kernel log, holders, users, file and line of a rule, a hint): the journal, the D-Bus error's second argument, kmodctl and the
gateway all carry these, and no code parses the message.

Also errors of the system that the daemon meets itself: no descriptors, no memory, a disk that cannot be read.
"""

import errno
import errno as codes
from collections.abc import Mapping
from dataclasses import field, replace
from typing import TYPE_CHECKING, ClassVar, Self

from kmodd.fast_dataclass import dataclass

if TYPE_CHECKING:  # which import this module
    from kmodd.model.modules import User
    from kmodd.model.reports import Consequence

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
    users: "tuple[User, ...]" = ()
    """What keeps the module busy, as in `Explain`."""
    file: str = ""
    """The configuration file of the rule that decided, or the file that cannot be read or written."""
    line: int = 0
    """Of that file, from 1; 0 where it is about the whole file."""
    rule: str = ""
    """The rule as everyone may read it."""
    rule_kind: str = ""
    """`blacklist`, `install`, `module_blacklist` …, as of a Rule; only `blacklist` can be overridden."""
    consequences: "tuple[Consequence, ...]" = ()
    """What would go with the module, where that is why it is not removed."""
    goes: tuple[str, ...] = ()
    """The same in sentences, as a client is answered it."""
    symbols: tuple[str, ...] = ()
    """Symbols that are missing, or that two modules export."""
    parameter: str = ""
    """The module's parameter that it is about."""
    log_fault: str = ""
    """Why lines of the kernel may be missing: the name of an errno."""

    @property
    def policy(self) -> str:
        """The rule that decided, as `file:line: text`; empty when there is none."""
        return f"{self.file}:{self.line}: {self.rule}" if self.rule and self.file else self.rule


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
    cause: str = field(default="", kw_only=True)
    """The message without the clauses of an aftermath; empty where there is none."""

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
        cause = self.cause or self.message
        clauses = "".join(f"; {clause}" for _, clause in aftermath)
        return replace(self, message=cause + clauses, aftermath=aftermath, cause=cause)

    @classmethod
    def name(cls) -> str:
        """The short name, as in the contract's table and in KMODD_ERROR=."""
        return cls.__name__

    @classmethod
    def bus_name(cls) -> str:
        """The full D-Bus error name."""
        return cls.namespace + cls.__name__


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


class NoSuchResponse(_NotFound):
    title = "no such vulnerability or response"


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
    classes: list[type[KmoddError]] = []
    for child in root.__subclasses__():
        classes.extend(_leaves(child) if child.__name__.startswith("_") else [child])
    return classes


ERRORS: Mapping[str, type[KmoddError]] = {error.bus_name(): error for error in _leaves(KmoddError)}
"""Every error by its D-Bus name; clients rebuild exceptions with it."""

INTERNAL = "internal error, see the journal"
"""All that a caller learns of a bug of ours."""


_DESCRIPTORS = frozenset({codes.EMFILE, codes.ENFILE})
_MEMORY = frozenset({codes.ENOMEM, codes.EAGAIN})
_WORKERS = "systemctl status kmodd-worker.socket; journalctl -u 'kmodd-worker@*'"


def is_fault_of_the_machine(error: BaseException) -> bool:
    """Tell whether nothing in the daemon is wrong: the system had no resource for it, or could not read what is there."""
    return isinstance(error, OSError) and error.errno in {*_DESCRIPTORS, *_MEMORY, codes.EIO, codes.EACCES, codes.EPERM}


def machine_fault(error: OSError, module: str = "") -> KmoddError:
    """Make the error for what could not be read: what it says is not known, so nothing is done."""
    return scarce(error, module) or NotPermitted(
        f"the state of the system cannot be read ({errno_name(error.errno or 0)})",
        module=module,
        evidence=Evidence(errno=error.errno, file=_file(error), hint="journalctl -k"),
    )


def no_worker(error: OSError, module: str) -> KmoddError:
    """Make the error for a step that no worker process could be had for: the kernel was not called."""
    return scarce(error, module) or NotPermitted(
        f"cannot start a worker process for {module} ({errno_name(error.errno or 0)})",
        module=module,
        evidence=Evidence(errno=error.errno, hint=_WORKERS),
    )


def scarce(error: OSError, module: str) -> KmoddError | None:
    """Make the error for descriptors or memory that ran out; None for every other fault."""
    if error.errno in _DESCRIPTORS:
        what, hint = "file descriptors", "systemctl show kmodd -p LimitNOFILE; cat /proc/sys/fs/file-nr"
    elif error.errno in _MEMORY:
        what, hint = "memory or processes", "systemctl status kmodd"
    else:
        return None
    return LimitsExceeded(
        f"the daemon has no {what} left ({errno_name(error.errno or 0)})",
        module=module,
        evidence=Evidence(errno=error.errno, hint=hint),
    )


def _file(error: OSError) -> str:
    return error.filename if isinstance(error.filename, str) else ""
