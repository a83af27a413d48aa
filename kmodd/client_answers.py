# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon's answers as values of `kmodd.model`. An answer of another shape is `Failed`, naming the field."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from kmodd.errors import ERRORS, Evidence, Failed, KmoddError
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
    State,
    Step,
    StepAction,
    User,
)
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
    """An error by its name, with or without prefix; `Failed` for one nobody knows."""
    found = ERRORS.get(name) or _CLASSES.get(name) or Failed
    return found(message, module=module, evidence=evidence or Evidence())


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
        loaded_by=_loaded_by(loaded_by) if loaded_by else None,
        failure=failure(fields.module("name"), remembered) if remembered else None,
        because=fields.text("because"),
    )


def failure(module: ModuleName, data: Mapping[str, Any]) -> Failure:
    """The remembered failure within an explanation."""
    fields = Fields(data)
    return Failure(
        module=module,
        action=fields.text("action"),
        error=fields.text("error").rsplit(".", 1)[-1],
        message=fields.text("message"),
        evidence=Evidence(
            errno=fields.number("errno") if "errno" in data else None,
            kernel_log=fields.texts("kernel-log"),
            hint=fields.text("hint"),
        ),
        time=fields.number("time"),
        stuck=fields.flag("stuck"),
    )


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
        error=error_named(error, fields.text("message"), module=fields.text("module")) if error else None,
    )


def operation_result(row: Sequence[Any]) -> OperationResult:
    """One answer of `Batch`."""
    module, result, error, touched = row
    return OperationResult(
        module=str(module),
        result=Result(result),
        error=error_named(error, "") if error else None,
        touched=tuple(ModuleName(name) for name in touched),
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
            module=fields.text("module"),
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
        ),
    )


def _state(fields: Fields) -> State:
    try:
        return State(fields.text("state"))
    except ValueError:
        raise Failed("kmodd's answer has a state this version does not know") from None


def _user(row: Any) -> User:
    kind, name, detail = row
    return User(str(kind), str(name), str(detail))


def _loaded_by(data: Mapping[str, Any]) -> LoadedBy:
    fields = Fields(data)
    return LoadedBy(
        uid=fields.number("uid") if "uid" in data else None,
        client=fields.text("client"),
        reason=fields.text("reason"),
        time=fields.number("time"),
    )


def _check(fields: Fields) -> HealthCheck:
    return HealthCheck(
        name=fields.text("name"),
        status=HealthStatus(fields.text("status")),
        message=fields.text("message"),
        module=fields.text("module"),
        hint=fields.text("hint"),
    )
