# SPDX-License-Identifier: LGPL-2.1-or-later
"""Requests of the kernel for modules: which process needed them, what came of them, and who loaded what; attempts that a rule refused.

A process can cause any number of requests, for any alias, without any right. So one record stands for all requests of the same
user, unit, alias and outcome in a minute, and of one user only so many differ.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final

from kmodd.core.events import Audit, Clock, Event, Events, ModuleRemoved
from kmodd.core.planning.policy import Policy
from kmodd.errors import DisabledByPolicy, KmoddError
from kmodd.kernel.ports import Facts, LoadedModules, ModuleIndex
from kmodd.model import (
    HealthCheck,
    HealthStatus,
    HistoryEntry,
    HistoryQuery,
    Metric,
    ModuleLoad,
    ModuleRequest,
    Record,
    Requester,
    State,
)
from kmodd.model.rules import ManagedFile, way_out
from kmodd.model.surface import Response
from kmodd.names import ModuleName, canonical, parse_module_or_alias

SETTLE: Final = 2.0
"""Seconds after a request in which modprobe loads what it loads; then its outcome is looked at."""
ALIKE: Final = 1_000_000
"""Microseconds after a request in which those that are alike share its outcome; a later one has its own."""
PERIOD: Final = 60.0
"""Seconds for which one record stands for all that are alike."""
KINDS_MAX: Final = 20
"""Different requests of one user in that time that have a record each; the others are counted in one."""
PENDING_MAX: Final = 1024
"""Different requests whose outcome is still to be looked at; further ones are counted only."""
RECENT_MAX: Final = 32
"""ModuleRequests that a load is compared with where its modprobe had ended before it could be looked at."""
DEVICES_MAX: Final = 64
"""Devices that the kernel announced last, with which a load by udev is compared."""
DEVICES_AGE: Final = 30
"""Seconds for which they are: udev may have much to do."""
REMEMBERED_MAX: Final = 4096
"""Loads and requests that are remembered for `Explain`."""
REQUESTED, REFUSED = "module.requested", "module.refused"
_OUTCOMES = ("loaded", "refused", "absent", "failed", "unknown")
_NOTICE, _INFO = 5, 6
_DEVICES_NAMED = 4
EVENTS = (REFUSED,)


@dataclass(slots=True)
class _PendingRequest:
    """Requests that are alike and share an outcome: the first, and how many there are."""

    request: ModuleRequest
    count: int = 1


@dataclass(slots=True)
class _RequestCount:
    """ModuleRequests of one period that are alike."""

    record: Record
    more: int = 0


@dataclass(slots=True)
class _RecordPeriod:
    kinds: dict[tuple[object, ...], _RequestCount] = field(default_factory=dict)
    of_user: Counter[int | None] = field(default_factory=Counter)
    others: Counter[int | None] = field(default_factory=Counter)


class ModuleRequests:
    """Takes what the watcher tells, records it, and answers who loaded a module."""

    def __init__(
        self,
        index: ModuleIndex,
        loaded: LoadedModules,
        facts: Facts,
        policy: Policy,
        audit: Audit,
        events: Events,
        clock: Clock,
        later: Callable[[float, Callable[[], None]], Any],
        off: Callable[[], str],
        lost: Callable[[], int] = lambda: 0,
    ) -> None:
        """`off` answers why nothing is watched, `lost` how many events the kernel dropped."""
        self._index = index
        self._loaded = loaded
        self._facts = facts
        self._policy = policy
        self._audit = audit
        self._clock = clock
        self._later = later
        self._off = off
        self._lost = lost
        self._requests: OrderedDict[str, ModuleRequest] = OrderedDict()
        """The last request for each alias."""
        self._loads: OrderedDict[ModuleName, ModuleLoad] = OrderedDict()
        self._pending: dict[tuple[object, ...], _PendingRequest] = {}
        self._settled: deque[_PendingRequest] = deque()
        """Those of `_pending` whose time has come. One is looked at in each turn of the loop, so none waits for all of a flood."""
        self._recent: deque[ModuleRequest] = deque(maxlen=RECENT_MAX)
        """ModuleRequests whose modprobe may be under way."""
        self._devices: deque[tuple[int, str, str]] = deque(maxlen=DEVICES_MAX)
        """Time, alias and name of devices that the kernel announced."""
        self._period: _RecordPeriod | None = None
        self._outcomes: Counter[str] = Counter()
        events.subscribe(self._on_event, ModuleRemoved)

    def load_of(self, module: ModuleName) -> ModuleLoad | None:
        """Who loaded a module, if that was seen."""
        return self._loads.get(module)

    def requested(self, request: ModuleRequest) -> None:
        """The kernel asks for a module."""
        _remember(self._requests, request.alias, request)
        pending = self._pending.get(_source(request))
        if pending is not None and 0 <= request.time - pending.request.time < ALIKE:
            pending.count += 1
            return
        self._recent.append(request)
        if len(self._pending) + len(self._settled) >= PENDING_MAX:
            self._note(_PendingRequest(request), "", (), None)
            return
        pending = self._pending[_source(request)] = _PendingRequest(request)
        self._later(SETTLE, lambda: self._settle(pending))

    def announced(self, alias: str, device: str) -> None:
        """The kernel announces a device with this alias: udev may load what serves it."""
        self._devices.append((self._clock(), alias, device))

    def loaded(self, load: ModuleLoad) -> None:
        """A process loads a module."""
        alias = load.alias or self._alias_of(load)
        if alias:
            load = replace(load, alias=alias, request=self._requests.get(alias))
        needs = load.request.by if load.request is not None else load.by
        if _is_udev(needs):
            devices = (needs.device,) if needs.device else () if load.alias else self._devices_of(load.module)
            load = replace(load, devices=devices)
        _remember(self._loads, load.module, load)

    def _devices_of(self, module: ModuleName) -> tuple[str, ...]:
        """The devices announced of late that this module, or one that needs it, serves."""
        since = self._clock() - DEVICES_AGE * 1_000_000
        serves: dict[str, bool] = {}
        devices: dict[str, None] = {}
        for time, alias, device in self._devices:
            if time < since:
                continue
            if alias not in serves:
                serves[alias] = any(
                    module == name or module in self._index.dependencies(name) for name in self._modules(alias)
                )
            if serves[alias]:
                devices[device] = None
        return tuple(devices)

    def _alias_of(self, load: ModuleLoad) -> str:
        """The alias that the kernel's modprobe was started for, where it had ended before its command line could be read."""
        if load.by.name != "modprobe" or load.by.exe:
            return ""
        for request in reversed(self._recent):
            modules = self._modules(request.alias)
            if any(load.module == name or load.module in self._index.dependencies(name) for name in modules):
                return request.alias
        return ""

    def metrics(self) -> list[Metric]:
        """ModuleRequests since the daemon started, by outcome, and events that were lost."""
        rows = [
            Metric("kmodd_module_requests_total", "counter", (("result", each),), float(self._outcomes[each]))
            for each in _OUTCOMES
        ]
        return [*rows, Metric("kmodd_module_requests_lost_total", "counter", (), float(self._lost()))]

    def health(self) -> list[HealthCheck]:
        """Whether requests are watched."""
        if reason := self._off():
            with suppress(OSError):
                if self._facts.read().lockdown == "confidentiality":
                    reason = "lockdown=confidentiality closes tracefs to every process"
            message = f"Module requests are not traced: {reason}."
            return [HealthCheck("requests", HealthStatus.OK, message, "", "systemctl status 'kmodd-watcher*'")]
        return []

    def _on_event(self, event: Event) -> None:
        if isinstance(event, ModuleRemoved):
            self._loads.pop(event.name, None)

    def _settle(self, pending: _PendingRequest) -> None:
        self._settled.append(pending)
        if len(self._settled) == 1:
            self._later(0, self._judge)

    def _judge(self) -> None:
        pending = self._settled.popleft()
        if self._settled:
            self._later(0, self._judge)
        request = pending.request
        if self._pending.get(_source(request)) is pending:
            del self._pending[_source(request)]
        if request in self._recent:
            self._recent.remove(request)
        if self._is_counted_only(request):
            self._note(pending, "", (), None)
            return
        modules: tuple[ModuleName, ...] = ()
        try:
            self._index.refresh()
            modules = self._modules(request.alias)
            outcome, error = self._outcome(request.alias, modules)
        except OSError:
            outcome, error = "unknown", None
        self._note(pending, outcome, modules, error)

    def _is_counted_only(self, request: ModuleRequest) -> bool:
        """There is no record of it, whatever came of it: its user had too many different ones."""
        period = self._period
        return (
            period is not None
            and period.of_user[request.by.uid] >= KINDS_MAX
            and not any((*_source(request), outcome) in period.kinds for outcome in _OUTCOMES)
        )

    def _modules(self, alias: str) -> tuple[ModuleName, ...]:
        try:
            return self._index.resolve(parse_module_or_alias(alias))
        except KmoddError:
            return ()

    def _outcome(self, alias: str, modules: tuple[ModuleName, ...]) -> tuple[str, DisabledByPolicy | None]:
        if not modules:
            return "absent", None
        if all(self._index.is_builtin(name) or self._is_live(name) for name in modules):
            return "loaded", None
        command_line = self._facts.read().command_line
        for name in modules:
            # The kernel's modprobe obeys `blacklist` for an alias, and loads a module by its name in spite of it.
            by_name = canonical(alias) == name
            try:
                self._policy.check_load(name, command_line, requested=alias, override=by_name)
            except DisabledByPolicy as error:
                return "refused", error
            except KmoddError:
                continue
        return "failed", None

    def _is_live(self, name: ModuleName) -> bool:
        module = self._loaded.read(name)
        return module is not None and module.state is State.LIVE

    def _note(
        self,
        pending: _PendingRequest,
        outcome: str,
        modules: tuple[ModuleName, ...],
        error: DisabledByPolicy | None,
    ) -> None:
        """An empty outcome was not looked at."""
        request, count = pending.request, pending.count
        self._outcomes[outcome or "unknown"] += count
        if self._period is None:
            self._period = _RecordPeriod()
            self._later(PERIOD, self.flush)
        period, uid = self._period, request.by.uid
        kind = (*_source(request), outcome)
        alike = period.kinds.get(kind)
        if alike is not None:
            alike.more += count
        elif not outcome or period.of_user[uid] >= KINDS_MAX:
            period.others[uid] += count
        else:
            period.of_user[uid] += 1
            period.kinds[kind] = _RequestCount(record(request, outcome, modules, error), more=count - 1)
            self._audit.record(period.kinds[kind].record)

    def flush(self) -> None:
        """Write down what was only counted, and begin a new period."""
        period, self._period = self._period, None
        if period is None:
            return
        for alike in period.kinds.values():
            if alike.more:
                message = f"{alike.record.message}; {alike.more} more times in a minute"
                self._audit.record(
                    replace(alike.record, message=message, extra={**alike.record.extra, "COUNT": str(alike.more)})
                )
        for uid, count in period.others.items():
            message = f"{count} further module requests of one user in a minute were only counted"
            self._audit.record(Record(REQUESTED, message, uid=uid, priority=_NOTICE, extra={"COUNT": str(count)}))


def _source(request: ModuleRequest) -> tuple[object, ...]:
    """What requests that are alike have in common."""
    by = request.by
    return by.uid, by.unit, by.container, request.alias


def process_phrase(load: ModuleLoad) -> str:
    """Who needed or loaded a module, for those who may know it."""
    by = load.request.by if load.request is not None else load.by
    program = by.exe.rpartition("/")[2] or by.name or "a process that has ended"
    facts = [f"pid {by.pid}"]
    if by.uid is not None:
        facts.append(f"uid {by.uid}")
    if by.container:
        facts.append(f"container {by.container[:12]}")
    elif by.unit:
        facts.append(by.unit)
    return f"{program} ({', '.join(facts)})"


def reason(load: ModuleLoad, *, details: bool) -> str:
    """Why a module was loaded, as a clause: for everyone alias and kind only."""
    needs = load.request.by if load.request is not None else load.by
    if _is_udev(needs):
        # Devices are no secret: everyone may list /dev and /sys.
        return (
            f"loaded {f'for alias {load.alias}, requested ' if load.alias else ''}by udev, for {_any_of(load.devices)}"
        )
    if load.alias:
        if details and load.request is not None:
            return f"loaded for alias {load.alias}, requested by {process_phrase(load)}"
        return f"loaded for alias {load.alias}, which the kernel requested"
    return f"loaded by {process_phrase(load)}" if details else "loaded by something other than kmodd"


def _is_udev(process: Requester) -> bool:
    return process.uid == 0 and process.exe.rpartition("/")[2] in ("systemd-udevd", "udevadm")


def _any_of(devices: tuple[str, ...]) -> str:
    if len(devices) < 2:
        return devices[0] if devices else "a device"
    more = ", …" if len(devices) > _DEVICES_NAMED else ""
    return f"one of {len(devices)} devices ({', '.join(devices[:_DEVICES_NAMED])}{more})"


def record(
    request: ModuleRequest, outcome: str, modules: tuple[ModuleName, ...], error: DisabledByPolicy | None
) -> Record:
    """The record of one request and what came of it."""
    by = request.by
    program = by.exe or by.name or "a process that has ended"
    ends: Mapping[str, str] = {
        "loaded": f"{', '.join(modules)} {'is' if len(modules) == 1 else 'are'} loaded",
        "absent": "there is no such module",
        "refused": "a rule refuses it",
        "failed": f"{', '.join(modules)} was not loaded",
        "unknown": "what is loaded, or which rules there are, cannot be read",
    }
    extra = {
        "ALIAS": request.alias,
        "PID": str(by.pid),
        "COMM": by.name,
        "UNIT": by.unit,
        "CONTAINER": by.container,
        "CALL_SITE": request.site,
    }
    ending = ends[outcome]
    if error is not None:
        evidence = error.evidence
        extra |= {"RULE": evidence.policy, "FILE": evidence.file, "LINE": str(evidence.line or "")}
        ending = f"refused by {evidence.policy}" if evidence.policy else error.message
    done = Record(
        REFUSED if error is not None else REQUESTED,
        f"{program} needed alias {request.alias}: {ending}",
        action="load",
        result=outcome,
        error=error.name() if error is not None else "",
        uid=by.uid,
        exe=by.exe,
        hint=error.evidence.hint if error is not None else "",
        priority=_NOTICE if error is not None else _INFO,
        extra={name: value for name, value in extra.items() if value},
    )
    return done.about(modules) if modules else done


def _remember(table: "OrderedDict[Any, Any]", key: Any, value: Any) -> None:
    table[key] = value
    table.move_to_end(key)
    while len(table) > REMEMBERED_MAX:
        table.popitem(last=False)


@dataclass(slots=True)
class RefusedAttempts:
    """Attempts that are alike: the same request of the same program, user, and unit or container, and the same rule."""

    alias: str
    modules: tuple[str, ...]
    uid: int | None
    exe: str
    name: str
    """What the process called itself, where its program is not known."""
    unit: str
    container: str
    file: str
    """Of the rule."""
    line: int
    rule: str
    count: int
    first: int
    last: int
    response: str = ""
    """The response whose rule it is."""
    allow: str = ""
    """The command, or the imperative, that allows it."""


def refused_records(since: int, limit: int) -> HistoryQuery:
    """What to read for `count_refused`: the newest records."""
    return HistoryQuery(events=EVENTS, since=since, limit=limit)


def count_refused(entries: Iterable[HistoryEntry], responses: Iterable[Response]) -> list[RefusedAttempts]:
    """The attempts, those that came last first."""
    owners: dict[str, str] = {rule.module: response.id for response in responses for rule in response.rules}
    alike: dict[tuple[object, ...], RefusedAttempts] = {}
    for entry in entries:
        attempts = _attempts(entry)
        key = (
            attempts.alias,
            attempts.modules,
            attempts.uid,
            attempts.exe or attempts.name,
            attempts.unit,
            attempts.container,
            attempts.file,
            attempts.line,
        )
        same = alike.setdefault(key, attempts)
        if same is not attempts:
            same.count += attempts.count
            same.first, same.last = min(same.first, attempts.first), max(same.last, attempts.last)
    for each in alike.values():
        each.response = _response(each, owners)
        each.allow = _allow(each)
    return sorted(alike.values(), key=lambda each: -each.last)


def _attempts(entry: HistoryEntry) -> RefusedAttempts:
    record, extra = entry.record, entry.record.extra
    return RefusedAttempts(
        extra.get("ALIAS", ""),
        record.names,
        record.uid,
        record.exe,
        extra.get("COMM", ""),
        extra.get("UNIT", ""),
        extra.get("CONTAINER", ""),
        extra.get("FILE", ""),
        int(line) if (line := extra.get("LINE", "")).isdecimal() else 0,
        extra.get("RULE", ""),
        _count(record),
        entry.time,
        entry.time,
    )


def _count(record: Record) -> int:
    """A record of a period counts those that came after the first, which has another record."""
    text = record.extra.get("COUNT", "")
    return int(text) if text.isdecimal() and int(text) else 1


def _response(attempts: RefusedAttempts, owners: Mapping[str, str]) -> str:
    if attempts.file != ManagedFile.BLACKLIST:
        return ""
    return next((owners[name] for name in attempts.modules if name in owners), "")


def _allow(attempts: RefusedAttempts) -> str:
    if attempts.response:
        return f"kmodctl respond end {attempts.response}"
    if attempts.file == ManagedFile.BLACKLIST and attempts.modules:
        return f"kmodctl config blacklist --off {attempts.modules[0]}"
    return way_out(attempts.file) if attempts.file else ""
