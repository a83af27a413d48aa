# SPDX-License-Identifier: LGPL-2.1-or-later
"""Parses the daemon's replies into values of `kmodd.model`; a reply of another form is `Failed` and names the field.

Also the hints by error class, used where the daemon gave none.
"""

from collections.abc import Mapping, Sequence
from shlex import quote
from typing import Any, TypeVar

from kmodd import errors
from kmodd.errors import ERRORS, Evidence, Failed, KmoddError
from kmodd.fast_dataclass import dataclass
from kmodd.model import (
    Explanation,
    Failure,
    Health,
    HealthCheck,
    HealthStatus,
    HistoryEntry,
    KernelFacts,
    LoadedBy,
    Metric,
    ModuleInfo,
    OperationResult,
    ParameterInfo,
    Record,
    Result,
    Rule,
    State,
    Step,
    StepAction,
    User,
)
from kmodd.model.rules import Finding, Replacement, Severity
from kmodd.names import ModuleName

T = TypeVar("T")

_CLASSES = {error.name(): error for error in ERRORS.values()}


@dataclass(frozen=True, slots=True)
class Fields:
    """A map from the bus, read by name and type. What is missing is the given default."""

    data: Mapping[str, Any]

    def get(self, name: str, kind: type[T], default: T) -> T:
        """The field, or the default; of another type it is `Failed`."""
        value = self.data.get(name, default)
        if not isinstance(value, kind):
            raise Failed(f"kmodd's answer has a field '{name}' of an unexpected type")
        return value

    def text(self, name: str) -> str:
        """A string, empty when missing."""
        return self.get(name, str, "")

    def number(self, name: str) -> int:
        """An integer, 0 when missing."""
        return self.get(name, int, 0)

    def flag(self, name: str) -> bool:
        """A boolean, false when missing."""
        return self.get(name, bool, False)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings, empty when missing."""
        return tuple(str(item) for item in self.get(name, list, []))

    def modules(self, name: str) -> tuple[ModuleName, ...]:
        """A list of canonical module names."""
        return tuple(ModuleName(item) for item in self.texts(name))

    def module(self, name: str) -> ModuleName:
        """A canonical module name."""
        return ModuleName(self.text(name))


@dataclass(frozen=True, slots=True)
class ListedModule:
    """One row of `ListModules`; all but name and state only of loaded modules."""

    name: ModuleName
    state: State
    size: int = 0
    references: int = 0
    holders: tuple[ModuleName, ...] = ()
    taint: str = ""


def error_named(name: str, message: str, evidence: Evidence | None = None, *, module: str = "") -> KmoddError:
    """An error by its name, with or without prefix; `Failed` for an unknown one."""
    error = ERRORS.get(name) or _CLASSES.get(name) or Failed
    return error(message, module=module, evidence=evidence or Evidence())


def listed_module(data: Mapping[str, Any]) -> ListedModule:
    """One row of `ListModules`."""
    row = Fields(data)
    return ListedModule(
        name=row.module("name"),
        state=_state(row),
        size=row.number("size"),
        references=row.number("references"),
        holders=row.modules("holders"),
        taint=row.text("taint"),
    )


def explanation(data: Mapping[str, Any]) -> Explanation:
    """The answer of `Explain`."""
    fields = Fields(data)
    loaded_by = fields.get("loaded-by", dict, {})
    remembered = fields.get("failure", dict, {})
    return Explanation(
        name=fields.module("name"),
        state=_state(fields),
        references=fields.number("references"),
        holders=fields.modules("holders"),
        users=tuple(_user(row) for row in fields.get("users", list, [])),
        removable=fields.flag("removable"),
        blockers=fields.texts("blockers"),
        loadable=fields.flag("loadable"),
        policy=fields.text("policy"),
        rule=_rule(fields) if "policy-kind" in data else None,
        loaded_by=_loaded_by(loaded_by) if loaded_by else None,
        failure=failure(fields.module("name"), remembered) if remembered else None,
        because=fields.text("because"),
        free=fields.texts("free"),
        goes=fields.texts("consequences"),
        disconnects=fields.flag("disconnects"),
        partial=fields.text("partial"),
        file=fields.text("file"),
        differs=fields.text("differs"),
        withheld=fields.texts("withheld"),
    )


def _rule(fields: Fields) -> Rule:
    return Rule(
        fields.text("policy-kind"),
        fields.text("name"),
        "",
        fields.text("policy-file"),
        fields.number("policy-line"),
        fields.text("policy-rule"),
    )


def failure(module: ModuleName, data: Mapping[str, Any]) -> Failure:
    """The remembered failure within an explanation."""
    fields = Fields(data)
    return Failure(
        module=module,
        action=fields.text("action"),
        error=fields.text("error").rsplit(".", 1)[-1],
        message=fields.text("message"),
        evidence=evidence(data),
        time=fields.number("time"),
        stuck=fields.flag("stuck"),
    )


def evidence(data: Mapping[str, Any]) -> Evidence:
    """What was found out about a failure, of an error reply or of one that is remembered."""
    fields = Fields(data)
    return Evidence(
        errno=fields.number("errno") if "errno" in data else None,
        kernel_log=fields.texts("kernel-log"),
        hint=fields.text("hint"),
        holders=fields.texts("holders"),
        users=tuple(_user(row) for row in fields.get("users", list, [])),
        file=fields.text("file"),
        line=fields.number("line"),
        rule=fields.text("rule"),
        rule_kind=fields.text("rule-kind"),
        goes=fields.texts("consequences"),
        symbols=fields.texts("symbols"),
        parameter=fields.text("parameter"),
    )


def add_evidence(error: KmoddError, data: Mapping[str, Any]) -> None:
    """Put the second argument of an error reply into the error."""
    fields = Fields(data)
    error.module, error.argument = fields.text("module"), fields.text("argument")
    error.touched = fields.texts("touched")
    error.evidence = evidence(data)


def module_info(data: Mapping[str, Any]) -> tuple[ModuleInfo, tuple[str, ...]]:
    """The answer of `Describe`, and the names of the parameters that are writable when live."""
    fields = Fields(data)
    rows: list[Any] = fields.get("parameters", list, [])
    return (
        ModuleInfo(
            name=fields.module("name"),
            filename=fields.text("filename"),
            description=fields.text("description"),
            license=fields.text("license"),
            author=fields.text("author"),
            version=fields.text("version"),
            srcversion=fields.text("srcversion"),
            vermagic=fields.text("vermagic"),
            signer=fields.text("signer"),
            signed=fields.flag("signed"),
            intree=fields.flag("intree"),
            firmware=fields.texts("firmware"),
            depends=fields.modules("depends"),
            softdep_pre=fields.texts("softdep-pre"),
            softdep_post=fields.texts("softdep-post"),
            holds=fields.module("holds") if "holds" in data else None,
            aliases=fields.texts("aliases"),
            parameters=tuple(ParameterInfo(str(row[0]), str(row[1]), str(row[2])) for row in rows),
        ),
        tuple(str(row[0]) for row in rows if row[3]),
    )


def step(data: Mapping[str, Any]) -> Step:
    """One step of `Plan`. Its parameters arrive as the kernel would get them, as one text."""
    fields = Fields(data)
    error = fields.text("error")
    text = fields.text("parameters")
    return Step(
        action=StepAction(fields.text("action") or StepAction.INSERT),
        module=fields.module("module"),
        path=fields.text("path"),
        parameters=(("", text),) if text else (),
        because=fields.text("because"),
        operation=fields.number("operation"),
        optional=fields.flag("optional"),
        goes=fields.texts("consequences"),
        error=failed(fields) if error else None,
    )


def failed(fields: Fields) -> KmoddError:
    """The failure inside a row, with its evidence, as one that is raised."""
    return error_named(
        fields.text("error"), fields.text("message"), evidence(fields.data), module=fields.text("module")
    )


def operation_result(data: Mapping[str, Any]) -> OperationResult:
    """One row of `Batch` or `Apply`."""
    fields = Fields(data)
    return OperationResult(
        module=fields.text("module"),
        result=Result(fields.text("result")),
        error=failed(fields) if fields.text("error") else None,
        touched=fields.modules("changed"),
        action=fields.text("action"),
    )


def health(data: Mapping[str, Any]) -> Health:
    """The answer of `GetHealth`."""
    fields = Fields(data)
    return Health(
        status=HealthStatus(fields.text("status")),
        checks=tuple(_check(Fields(row)) for row in fields.get("checks", list, [])),
        facts=KernelFacts(
            release=fields.text("release"),
            lockdown=fields.text("lockdown"),
            signature_enforced=fields.flag("signature-enforced"),
            modules_disabled=fields.flag("modules-disabled"),
            secure_boot=fields.flag("secure-boot"),
            taint=fields.number("taint"),
        ),
        taint_flags=fields.texts("taint-flags"),
    )


def metric(row: Sequence[Any]) -> Metric:
    """One sample of `GetMetrics`."""
    name, kind, labels, value = row
    return Metric(str(name), str(kind), tuple(sorted(labels.items())), float(value))


def history_entry(data: Mapping[str, Any]) -> HistoryEntry:
    """One record of `GetHistory`."""
    fields = Fields(data)
    return HistoryEntry(
        time=fields.number("time"),
        record=Record(
            event=fields.text("event"),
            message=fields.text("message"),
            action=fields.text("action"),
            result=fields.text("result"),
            error=fields.text("error"),
            uid=fields.number("uid") if "uid" in data else None,
            sender=fields.text("sender"),
            exe=fields.text("exe"),
            reason=fields.text("reason"),
            job=fields.text("job"),
            duration_usec=fields.number("duration-usec") if "duration-usec" in data else None,
            errno=fields.number("errno") if "errno" in data else None,
            kernel_log=fields.texts("kernel-log"),
            hint=fields.text("hint"),
            on_behalf_of=fields.text("on-behalf-of"),
            login_uid=fields.number("login-uid") if "login-uid" in data else None,
        ).about(fields.texts("modules")),
    )


def _state(fields: Fields) -> State:
    try:
        return State(fields.text("state"))
    except ValueError:
        raise Failed("kmodd's answer has a state this version does not know") from None


def _user(data: Any) -> User:
    if not isinstance(data, Mapping):
        raise Failed("kmodd's answer has users of an unexpected type")
    fields = Fields(data)
    return User(
        kind=fields.text("kind"),
        name=fields.text("name"),
        detail=fields.text("detail"),
        command=fields.text("command"),
        pid=fields.number("pid") if "pid" in data else None,
        exe=fields.text("exe"),
        unit=fields.text("unit"),
        container=fields.text("container"),
        netns=fields.text("netns"),
        mountns=fields.text("mountns"),
        file=fields.text("file"),
        line=fields.number("line"),
        count=fields.number("count"),
    )


def held_by(evidence: Evidence) -> tuple[User, ...]:
    """Everything that keeps a module busy, as `Explain` names it: the modules that hold it go first."""
    named = {user.name for user in evidence.users if user.kind == "module"}
    holders = (User("module", name, "uses it") for name in evidence.holders if name not in named)
    return (*holders, *evidence.users)


def about_user(user: User) -> dict[str, Any]:
    """A user as plain values, keys as on the bus; what is not known is left out."""
    row: dict[str, Any] = {"kind": user.kind, "name": user.name, "detail": user.detail}
    more = {
        "command": user.command,
        "pid": user.pid,
        "exe": user.exe,
        "unit": user.unit,
        "container": user.container,
        "netns": user.netns,
        "mountns": user.mountns,
        "file": user.file,
        "line": user.line,
        "count": user.count,
    }
    return row | {key: value for key, value in more.items() if value}


def _loaded_by(data: Mapping[str, Any]) -> LoadedBy:
    fields = Fields(data)
    return LoadedBy(
        uid=fields.number("uid") if "uid" in data else None,
        client=fields.text("client"),
        reason=fields.text("reason"),
        time=fields.number("time"),
        alias=fields.text("alias") if "alias" in data else "",
        pid=fields.number("pid") if "pid" in data else None,
        unit=fields.text("unit") if "unit" in data else "",
        container=fields.text("container") if "container" in data else "",
        devices=fields.texts("devices") if "devices" in data else (),
    )


def _check(fields: Fields) -> HealthCheck:
    return HealthCheck(
        name=fields.text("name"),
        status=HealthStatus(fields.text("status")),
        message=fields.text("message"),
        module=fields.text("module"),
        hint=fields.text("hint"),
        finding=finding(fields.data) if "file" in fields.data else None,
        error=fields.text("error"),
        cause=fields.text("cause"),
    )


def finding(data: Mapping[str, Any]) -> Finding:
    """One finding about a line of a configuration file, of `Show` or of a health check."""
    row = Fields(data)
    return Finding(
        row.text("kind"),
        row.text("message"),
        # A daemon of a later version may tell more severities apart.
        Severity.NOTE if row.text("severity") == Severity.NOTE else Severity.WARNING,
        tuple(Replacement(str(file), str(text)) for file, text in row.get("instead", list, [])),
        row.text("file"),
        row.number("line"),
    )


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
    errors.DisabledByPolicy: "kmodctl why {module} shows the rule",
    errors.LimitsExceeded: "wait until earlier requests are done",
    errors.WrongKernel: "rebuild the module for this kernel",
    errors.Shadows: "kmodctl store import --shadow FILE, if it is meant to take that one's place",
    errors.BadSignature: "the file was changed after it was signed, or its key is not enrolled: install it again",
    errors.Lockdown: (
        "sign it with a key that the kernel trusts, or enrol yours: `mokutil --import CERT` (in DER form), then reboot and confirm"
    ),
    errors.ModulesDisabled: "kernel.modules_disabled can only be undone by a reboot",
    errors.Stuck: "kmodctl reset-failed {module} clears it once the call has returned; only a reboot forces it",
    errors.TimedOut: "kmodctl why {module} shows whether it is still under way",
    errors.Crashed: "the kernel log has the trace: journalctl -k; plan a reboot",
    errors.Unavailable: "see: systemctl status kmodd",
}


def hint_for(error: KmoddError, module: str) -> str:
    """The daemon's own hint first; empty when there is nothing to add."""
    if error.evidence.hint:
        return error.evidence.hint
    text = _HINTS.get(type(error), "")
    # A name that leads nowhere is the caller's own text, and these are commands to paste.
    return "" if "{module}" in text and not module else text.format(module=quote(module))
