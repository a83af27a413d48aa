# SPDX-License-Identifier: LGPL-2.1-or-later
"""ModuleSet and NodeModules as values. What arrives is parsed as foreign input, no matter who sent it: the schema of an API server is not
ours to rely on, and the same parser reads what the agent kept on disk.

A document that is not as deploy/kubernetes/crds.yaml describes it is `InvalidArgs`, with the path of the field as argument.
Fields that are not known here are ignored, as the API server prunes them. Times are RFC 3339 in UTC.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import field, fields
from enum import StrEnum
from typing import Any, TypeVar

from kmodd.errors import ERRORS, InvalidArgs
from kmodd.fast_dataclass import dataclass
from kmodd.names import ModuleName, parse_module, parse_parameters, parse_version

GROUP, VERSION = "kmodd.org", "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

REASONS = tuple(error.name() for error in ERRORS.values())
"""The names of kmodd's table of errors, which are the only reasons of modules and sets."""

MODULES_MAX, SETS_MAX, AFTER_MAX, LABELS_MAX, NAMESPACES_MAX = 64, 64, 16, 32, 64
NAME_MAX = 63
"""Characters of a ModuleSet's name, which becomes part of a label."""
SECONDS_MAX = 86400
MESSAGE_MAX = 4096
LOG_LINES_MAX, LOG_LINE_MAX = 32, 1024
USERS_MAX, USER_TEXT_MAX = 32, 1024
STATUS_MODULES_MAX = 1024

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_CAMEL = re.compile(r"_(.)")

T = TypeVar("T")


class Mode(StrEnum):
    """When a set's modules are to be loaded."""

    ALWAYS = "Always"
    ON_DEMAND = "OnDemand"


class Foreign(StrEnum):
    """What to do where a module is loaded with other parameters, by others than the agent."""

    REPORT = "Report"
    RELOAD = "Reload"


class ModuleState(StrEnum):
    """What a module, or the worst of a set's, is like on a node; the worst is the last."""

    READY = "Ready"
    LOADABLE = "Loadable"
    """On demand, not demanded, and nothing stands against loading it."""
    PENDING = "Pending"
    """About to be loaded or unloaded."""
    DRIFTED = "Drifted"
    """Loaded by others, with other parameters."""
    BLOCKED = "Blocked"
    """Something that uses the module, or a set before it, must change first."""
    FAILED = "Failed"


class ConditionStatus(StrEnum):
    """Status of a condition."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


@dataclass(frozen=True, slots=True)
class WantedModule:
    """One module of a set."""

    name: ModuleName
    parameters: tuple[tuple[str, str], ...] = ()
    """Sorted by name."""
    version: str = ""
    """Version in the store of kmodd; empty for whichever is active."""
    required: bool = True


@dataclass(frozen=True, slots=True)
class Demand:
    """Which pods need a set."""

    pod_selector: tuple[tuple[str, str], ...]
    namespaces: tuple[str, ...] = ()
    """Empty for every one."""
    unload_after_seconds: int = 60


@dataclass(frozen=True, slots=True)
class Rollout:
    """How a change that unloads or reloads goes over the nodes."""

    max_unavailable: int = 1
    stop_after_failures: int = 1
    """0 for never."""
    paused: bool = False


@dataclass(frozen=True, slots=True)
class ModuleSetSpec:
    """What an administrator wants."""

    modules: tuple[WantedModule, ...]
    node_selector: tuple[tuple[str, str], ...] = ()
    """Empty for every node."""
    mode: Mode = Mode.ALWAYS
    after: tuple[str, ...] = ()
    demand: Demand | None = None
    rollout: Rollout = Rollout()
    when_foreign_parameters: Foreign = Foreign.REPORT


@dataclass(frozen=True, slots=True)
class Metadata:
    """What is used of an object's metadata."""

    name: str
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    deleting: bool = False


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition of a status."""

    type: str
    status: ConditionStatus
    reason: str
    message: str
    last_transition_time: str
    observed_generation: int = 0


@dataclass(frozen=True, slots=True)
class TopReason:
    """How many nodes are not ready for one reason."""

    reason: str
    nodes: int
    example: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class ModuleSetStatus:
    """What became of a set on all its nodes."""

    observed_generation: int = 0
    nodes: int = 0
    ready: int = 0
    failed: int = 0
    blocked: int = 0
    updated: int = 0
    top_reasons: tuple[TopReason, ...] = ()
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class ModuleSet:
    """One ModuleSet."""

    metadata: Metadata
    spec: ModuleSetSpec
    status: ModuleSetStatus = ModuleSetStatus()


@dataclass(frozen=True, slots=True)
class NodeSet:
    """One set as it is resolved for one node."""

    name: str
    modules: tuple[WantedModule, ...]
    generation: int = 0
    mode: Mode = Mode.ALWAYS
    demanded: bool = False
    unload_after_seconds: int = 60
    after: tuple[str, ...] = ()
    when_foreign_parameters: Foreign = Foreign.REPORT

    @property
    def wanted(self) -> bool:
        """Its modules are to be loaded now."""
        return self.mode is Mode.ALWAYS or self.demanded


@dataclass(frozen=True, slots=True)
class NodeModulesSpec:
    """What one node is to do."""

    sets: tuple[NodeSet, ...] = ()


@dataclass(frozen=True, slots=True)
class StatusUser:
    """Something that keeps a module busy."""

    kind: str
    name: str = ""
    detail: str = ""
    count: int | None = None
    """How many of the kind, where they are not named."""


@dataclass(frozen=True, slots=True)
class ModuleStatus:
    """What one module is like on a node."""

    name: str
    state: ModuleState
    reason: str = ""
    """A name of the error table; empty where there is no error."""
    message: str = ""
    hint: str = ""
    kernel_log: tuple[str, ...] = ()
    users: tuple[StatusUser, ...] = ()
    parameters: tuple[tuple[str, str], ...] = ()
    version: str = ""
    owned_by_agent: bool = False
    attempts: int = 0
    next_try: str = ""
    observed_generation: int = 0


@dataclass(frozen=True, slots=True)
class SetStatus:
    """What one set is like on a node: the worst of its required modules."""

    name: str
    state: ModuleState
    reason: str = ""
    message: str = ""
    generation: int = 0
    """Of the ModuleSet."""


@dataclass(frozen=True, slots=True)
class NodeModulesStatus:
    """What a node's agent says."""

    observed_generation: int = 0
    boot_id: str = field(default="", metadata={"key": "bootID"})
    kernel_release: str = ""
    agent_version: str = ""
    kmodd_version: str = ""
    last_contact: str = ""
    sets: tuple[SetStatus, ...] = ()
    modules: tuple[ModuleStatus, ...] = ()
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class NodeModules:
    """One NodeModules."""

    metadata: Metadata
    spec: NodeModulesSpec
    status: NodeModulesStatus = NodeModulesStatus()


# --- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Fields:
    """A JSON object, read by name and type; what is wrong is InvalidArgs with the field's path."""

    data: Mapping[str, Any]
    path: str = ""

    def at(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def refuse(self, key: str, what: str) -> InvalidArgs:
        where = self.at(key)
        return InvalidArgs(f"field {where} {what}", argument=where)

    def get(self, key: str, kind: type[T], default: T) -> T:
        value = self.data.get(key)
        if value is None:
            return default
        # bool is an int to Python, and no number to JSON.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.refuse(key, "has an unexpected type")
        return value

    def text(self, key: str, limit: int, default: str = "") -> str:
        value = self.get(key, str, default)
        if len(value) > limit:
            raise self.refuse(key, f"has more than {limit} characters")
        return value

    def number(self, key: str, default: int = 0, *, low: int = 0, high: int = 1 << 53) -> int:
        value = self.get(key, int, default)
        if not low <= value <= high:
            raise self.refuse(key, f"is not between {low} and {high}")
        return value

    def choice(self, key: str, kind: type[T], default: T) -> T:
        value = self.get(key, str, str(default))
        try:
            return kind(value)  # type: ignore[call-arg]  # an enumeration of texts
        except ValueError:
            raise self.refuse(key, "is none of the values that are known") from None

    def inner(self, key: str) -> "_Fields | None":
        value: dict[str, Any] | None = self.get(key, dict, None)
        return None if value is None else _Fields(value, self.at(key))

    def rows(self, key: str, limit: int) -> tuple["_Fields", ...]:
        values: list[Any] = self.get(key, list, [])
        if len(values) > limit:
            raise self.refuse(key, f"has more than {limit} items")
        rows = []
        for position, value in enumerate(values):
            if not isinstance(value, dict):
                raise self.refuse(f"{key}[{position}]", "has an unexpected type")
            rows.append(_Fields(value, f"{self.at(key)}[{position}]"))
        return tuple(rows)

    def texts(self, key: str, limit: int, size: int) -> tuple[str, ...]:
        values: list[Any] = self.get(key, list, [])
        if len(values) > limit:
            raise self.refuse(key, f"has more than {limit} items")
        if not all(isinstance(value, str) and len(value) <= size for value in values):
            raise self.refuse(key, f"has an item that is not a text of at most {size} characters")
        return tuple(values)

    def pairs(self, key: str, limit: int, size: int) -> tuple[tuple[str, str], ...]:
        values: dict[Any, Any] = self.get(key, dict, {})
        if len(values) > limit:
            raise self.refuse(key, f"has more than {limit} entries")
        for name, value in values.items():
            if not isinstance(name, str) or not isinstance(value, str) or len(name) > NAME_MAX * 5 or len(value) > size:
                raise self.refuse(key, f"has an entry that is not a text of at most {size} characters")
        return tuple(sorted(values.items()))

    def labels(self, key: str) -> tuple[tuple[str, str], ...]:
        labels = self.pairs(key, LABELS_MAX, NAME_MAX)
        for name, value in labels:
            if _LABEL_KEY.fullmatch(name) is None or _LABEL_VALUE.fullmatch(value) is None:
                raise self.refuse(key, "has an entry that is not a label")
        return labels

    def name(self, key: str) -> str:
        value = self.text(key, NAME_MAX)
        if _NAME.fullmatch(value) is None:
            raise self.refuse(key, "is not the name of an object")
        return value

    def names(self, key: str, limit: int) -> tuple[str, ...]:
        names = self.texts(key, limit, NAME_MAX)
        if not all(_NAME.fullmatch(name) for name in names):
            raise self.refuse(key, "has an item that is not the name of an object")
        return names

    def parsed(self, key: str, parse: Callable[[Any], T], value: Any) -> T:
        try:
            return parse(value)
        except InvalidArgs as error:
            raise self.refuse(key, f"is refused: {error.message}") from None


def parse_module_set(document: Mapping[str, Any]) -> ModuleSet:
    """Read a ModuleSet with its status; `InvalidArgs`."""
    root = _root(document, "ModuleSet")
    status = root.inner("status")
    return ModuleSet(_metadata(root), _set_spec(_inner(root, "spec")), _set_status(status or _Fields({}, "status")))


def parse_node_modules(document: Mapping[str, Any]) -> NodeModules:
    """Read a NodeModules with its status; `InvalidArgs`."""
    root = _root(document, "NodeModules")
    status = root.inner("status")
    return NodeModules(_metadata(root), _node_spec(root), _node_status(status or _Fields({}, "status")))


def parse_node_spec(document: Mapping[str, Any]) -> NodeModulesSpec:
    """Read the spec of a NodeModules alone, for what only obeys it; `InvalidArgs`."""
    return _node_spec(_root(document, "NodeModules"))


def parse_metadata(document: Mapping[str, Any]) -> Metadata:
    """Read what is used of any object's metadata; `InvalidArgs`."""
    return _metadata(_Fields(document))


def _root(document: Mapping[str, Any], kind: str) -> _Fields:
    root = _Fields(document)
    if root.text("apiVersion", 256) not in ("", API_VERSION) or root.text("kind", 256) not in ("", kind):
        raise InvalidArgs(f"the document is not a {kind} of {API_VERSION}", argument="kind")
    return root


def _inner(fields: _Fields, key: str) -> _Fields:
    inner = fields.inner(key)
    if inner is None:
        raise fields.refuse(key, "is missing")
    return inner


def _metadata(root: _Fields) -> Metadata:
    meta = _inner(root, "metadata")
    name = meta.text("name", 253)
    if not name:
        raise meta.refuse("name", "is missing")
    return Metadata(
        name,
        meta.text("uid", 128),
        meta.number("generation"),
        meta.text("resourceVersion", 128),
        bool(meta.text("deletionTimestamp", 64)),
    )


def _module(row: _Fields) -> WantedModule:
    name = row.parsed("name", parse_module, row.text("name", 64))
    given = dict(row.pairs("parameters", 64, 4096))
    parameters = row.parsed("parameters", parse_parameters, given)
    version = row.text("version", 64)
    if version:
        row.parsed("version", parse_version, version)
    return WantedModule(name, tuple(sorted(parameters.items())), version, row.get("required", bool, True))


def _modules(fields: _Fields) -> tuple[WantedModule, ...]:
    modules = tuple(_module(row) for row in fields.rows("modules", MODULES_MAX))
    if len({module.name for module in modules}) != len(modules):
        raise fields.refuse("modules", "names a module twice")
    return modules


def _set_spec(spec: _Fields) -> ModuleSetSpec:
    demand, rollout = spec.inner("demand"), spec.inner("rollout") or _Fields({}, spec.at("rollout"))
    mode = spec.choice("mode", Mode, Mode.ALWAYS)
    if (mode is Mode.ON_DEMAND) != (demand is not None):
        raise spec.refuse("demand", f"belongs to mode {Mode.ON_DEMAND}, and that mode needs it")
    modules = _modules(spec)
    if not modules:
        raise spec.refuse("modules", "is missing")
    return ModuleSetSpec(
        modules=modules,
        node_selector=spec.labels("nodeSelector"),
        mode=mode,
        after=spec.names("after", AFTER_MAX),
        demand=None if demand is None else _demand(demand),
        rollout=Rollout(
            rollout.number("maxUnavailable", 1, low=1, high=10000),
            rollout.number("stopAfterFailures", 1, high=10000),
            rollout.get("paused", bool, False),
        ),
        when_foreign_parameters=spec.choice("whenForeignParameters", Foreign, Foreign.REPORT),
    )


def _demand(demand: _Fields) -> Demand:
    selector = demand.labels("podSelector")
    if not selector:
        # An empty selector would be every pod, and so the loss of one label would load modules everywhere.
        raise demand.refuse("podSelector", "is missing")
    return Demand(
        selector,
        demand.names("namespaces", NAMESPACES_MAX),
        demand.number("unloadAfterSeconds", 60, high=SECONDS_MAX),
    )


def _node_spec(root: _Fields) -> NodeModulesSpec:
    spec = root.inner("spec")
    if spec is None:
        return NodeModulesSpec()
    sets = tuple(_node_set(row) for row in spec.rows("sets", SETS_MAX))
    if len({one.name for one in sets}) != len(sets):
        raise spec.refuse("sets", "names a set twice")
    return NodeModulesSpec(sets)


def _node_set(row: _Fields) -> NodeSet:
    return NodeSet(
        name=row.name("name"),
        modules=_modules(row),
        generation=row.number("generation"),
        mode=row.choice("mode", Mode, Mode.ALWAYS),
        demanded=row.get("demanded", bool, False),
        unload_after_seconds=row.number("unloadAfterSeconds", 60, high=SECONDS_MAX),
        after=row.names("after", AFTER_MAX),
        when_foreign_parameters=row.choice("whenForeignParameters", Foreign, Foreign.REPORT),
    )


def _reason(row: _Fields) -> str:
    reason = row.text("reason", 64)
    if reason and reason not in REASONS:
        raise row.refuse("reason", "is no name of kmodd's table of errors")
    return reason


def _conditions(status: _Fields) -> tuple[Condition, ...]:
    return tuple(
        Condition(
            row.text("type", 316),
            row.choice("status", ConditionStatus, ConditionStatus.UNKNOWN),
            row.text("reason", 1024),
            row.text("message", 32768),
            row.text("lastTransitionTime", 64),
            row.number("observedGeneration"),
        )
        for row in status.rows("conditions", 16)
    )


def _set_status(status: _Fields) -> ModuleSetStatus:
    return ModuleSetStatus(
        observed_generation=status.number("observedGeneration"),
        nodes=status.number("nodes"),
        ready=status.number("ready"),
        failed=status.number("failed"),
        blocked=status.number("blocked"),
        updated=status.number("updated"),
        top_reasons=tuple(
            TopReason(_reason(row), row.number("nodes"), row.text("example", 253), row.text("message", MESSAGE_MAX))
            for row in status.rows("topReasons", 5)
        ),
        conditions=_conditions(status),
    )


def _node_status(status: _Fields) -> NodeModulesStatus:
    return NodeModulesStatus(
        observed_generation=status.number("observedGeneration"),
        boot_id=status.text("bootID", 64),
        kernel_release=status.text("kernelRelease", 256),
        agent_version=status.text("agentVersion", 64),
        kmodd_version=status.text("kmoddVersion", 64),
        last_contact=status.text("lastContact", 64),
        sets=tuple(
            SetStatus(
                row.name("name"),
                row.choice("state", ModuleState, ModuleState.PENDING),
                _reason(row),
                row.text("message", MESSAGE_MAX),
                row.number("generation"),
            )
            for row in status.rows("sets", 2 * SETS_MAX)
        ),
        modules=tuple(_module_status(row) for row in status.rows("modules", STATUS_MODULES_MAX)),
        conditions=_conditions(status),
    )


def _module_status(row: _Fields) -> ModuleStatus:
    return ModuleStatus(
        name=row.parsed("name", parse_module, row.text("name", 64)),
        state=row.choice("state", ModuleState, ModuleState.PENDING),
        reason=_reason(row),
        message=row.text("message", MESSAGE_MAX),
        hint=row.text("hint", MESSAGE_MAX),
        kernel_log=row.texts("kernelLog", LOG_LINES_MAX, LOG_LINE_MAX),
        users=tuple(
            StatusUser(
                user.text("kind", 64),
                user.text("name", USER_TEXT_MAX),
                user.text("detail", USER_TEXT_MAX),
                user.number("count") or None,
            )
            for user in row.rows("users", USERS_MAX)
        ),
        parameters=row.pairs("parameters", 64, MESSAGE_MAX),
        version=row.text("version", 256),
        owned_by_agent=row.get("ownedByAgent", bool, False),
        attempts=row.number("attempts"),
        next_try=row.text("nextTry", 64),
        observed_generation=row.number("observedGeneration"),
    )


# --- writing ---------------------------------------------------------------------------------------------------------

_PAIRS = frozenset({"parameters", "pod_selector", "node_selector"})
"""Fields that are objects in JSON, and sorted pairs here."""
_KEPT = frozenset({"required", "demanded", "owned_by_agent", "sets", "modules", "conditions", "paused"})
"""Fields that are written also where they are false or empty, so that they are seen and owned."""


def as_json(value: object) -> Any:
    """A dataclass of this module as JSON, keys as in the schema; empty fields that need not be seen are left out."""
    if isinstance(value, StrEnum):
        return str(value)
    if isinstance(value, tuple):
        return [as_json(item) for item in value]
    if not hasattr(value, "__dataclass_fields__"):
        return value
    document: dict[str, Any] = {}
    for item in fields(value):  # type: ignore[arg-type]  # a dataclass, as was just seen
        content = getattr(value, item.name)
        if content in ("", (), None) and item.name not in _KEPT:
            continue
        key = item.metadata.get("key") or _CAMEL.sub(lambda match: match[1].upper(), item.name)
        document[key] = dict(content) if item.name in _PAIRS else as_json(content)
    return document
