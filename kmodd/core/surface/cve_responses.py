# SPDX-License-Identifier: LGPL-2.1-or-later
"""Answers vulnerabilities: keeps the modules of a record out by every route, proves it, and ends when the fixed kernel runs.

A response owns the rules that it wrote, and no others: what was hard-blacklisted before stays when it ends, and so does a rule
that was changed since.
"""

import asyncio
import shlex
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from kmodd.core.audit.redaction import View, redact
from kmodd.core.diagnosis.explain import Explainer
from kmodd.core.events import Audit, Clock
from kmodd.core.fair_share import FairSlots, User
from kmodd.core.operations.jobs import run_to_completion
from kmodd.core.operations.operations import Operations, check_loaders
from kmodd.core.rules.configuration import Configuration
from kmodd.core.rules.managed_files import Entry
from kmodd.core.surface.vulnerabilities import assess, modules_of, without_modules
from kmodd.errors import Conflict, Evidence, InvalidArgs, KmoddError, NoSuchResponse
from kmodd.kernel.ports import Facts, InstalledKernels
from kmodd.model import (
    Caller,
    Explanation,
    HealthCheck,
    HealthStatus,
    HistoryEntry,
    HistoryQuery,
    Loaders,
    Operation,
    Record,
    Request,
    Rule,
    State,
    Verb,
)
from kmodd.model.rules import RuleAction, RuleChange
from kmodd.model.surface import (
    KernelReport,
    ModuleUse,
    OwnedRule,
    Placement,
    Response,
    ResponseOutcome,
    Verdict,
    Vulnerability,
)
from kmodd.names import ARRAY_MAX, ModuleName, is_cve, response_id

RESPONSES_MAX = 64
PAST_DAYS = 90
_PAST_USEC = PAST_DAYS * 86400 * 1_000_000
_LOADS = ("module.loaded", "module.appeared", "module.reloaded")
_LOADS_MAX = 1000
BEGUN, STOPPED, ENDED = "response.begun", "response.stopped", "response.ended"
_ITSELF = Caller("", 0)
"""Who ends a response when the fixed kernel runs."""
_RESIDENT = frozenset({State.LIVE, State.COMING, State.GOING})
_HERE = "respond"

History = Callable[[HistoryQuery, Caller], Awaitable[Sequence[HistoryEntry]]]


class Responses:
    """One change at a time; what is read and written is read and written in a thread."""

    def __init__(
        self,
        *,
        installed: InstalledKernels,
        facts: Facts,
        rules: Configuration,
        operations: Operations,
        explainer: Explainer,
        history: History,
        autoload: Callable[[], Sequence[Rule]],
        audit: Audit,
        clock: Clock,
        records: Callable[[], Mapping[str, Vulnerability]],
        read: Callable[[], tuple[Response, ...]],
        write: Callable[[Sequence[Response]], None],
    ) -> None:
        """`records` answers the records of responses.d, `read` and `write` keep responses; all raise Conflict or NotPermitted."""
        self._installed = installed
        self._facts = facts
        self._rules = rules
        self._operations = operations
        self._explainer = explainer
        self._history = history
        self._autoload = autoload
        self._audit = audit
        self._clock = clock
        self._records = records
        self._read = read
        self._write = write
        self._lock = asyncio.Lock()
        self._slots = FairSlots(1, root=1)
        self._trouble = ""

    # --- questions ----------------------------------------------------------------------------------------------------

    async def all(self) -> tuple[Response, ...]:
        """The responses that have not ended."""
        return await asyncio.to_thread(self._read)

    @property
    def is_busy(self) -> bool:
        """One is being begun or ended."""
        return self._lock.locked()

    async def find(self, key: str) -> Response:
        """One of them; NoSuchResponse."""
        response = next((each for each in await self.all() if each.id == key), None)
        if response is None:
            raise NoSuchResponse(f"there is no response {key}", evidence=Evidence(hint="kmodctl respond list"))
        return response

    async def refuse_change(self, record: Vulnerability) -> None:
        """Conflict where the response to this is to other modules or versions: its end, which allows modules, is authorized."""
        kept = next((response.vulnerability for response in await self.all() if response.id == record.id), None)
        if kept is None:
            return
        if set(kept.modules) != set(record.modules):
            what = "modules"
        elif _versions(kept) != _versions(record):
            what = "fixed versions"
        else:
            return
        raise Conflict(
            f"the response {record.id} has other {what}; end it first",
            argument="id",
            evidence=Evidence(hint=f"kmodctl respond end {shlex.quote(record.id)}"),
        )

    async def record(self, requested: Vulnerability, uid: User) -> Vulnerability:
        """The record of a request: the shipped one of that id if the request names nothing itself; NoSuchResponse, InvalidArgs."""
        return await self._slots.in_thread(uid, self._record, requested)

    def _record(self, requested: Vulnerability) -> Vulnerability:
        if requested.image_files:
            modules = modules_of(requested.image_files, self._installed)
            names = tuple(dict.fromkeys((*requested.modules, *modules.values())))
            if not names:
                raise without_modules(requested)
            if len(names) > ARRAY_MAX:
                raise InvalidArgs(f"modules and files name more than {ARRAY_MAX} modules", argument="options")
            unknown = tuple(file for file in requested.image_files if file not in modules)
            key = requested.id if is_cve(requested.id) else response_id(names)
            return replace(requested, id=key, modules=names, image_files=unknown)
        if requested.modules:
            return requested
        record = self._records().get(requested.id)
        if record is None:
            raise NoSuchResponse(
                f"there is no record of {requested.id}",
                evidence=Evidence(
                    hint="give the record of the kernel's CNA as a file, or name the modules with --module"
                ),
            )
        return record

    def health(self) -> list[HealthCheck]:
        """A response that could not be ended, or responses that cannot be read."""
        if not self._trouble:
            return []
        return [HealthCheck("responses", HealthStatus.DEGRADED, self._trouble, "", "kmodctl respond list")]

    # --- changes ------------------------------------------------------------------------------------------------------

    async def respond(
        self,
        record: Vulnerability,
        caller: Caller,
        *,
        dry_run: bool = False,
        force: bool = False,
        reason: str = "",
        on_behalf_of: str = "",
        loaders: Loaders | None = None,
    ) -> ResponseOutcome:
        """Keep the modules out, unless something uses them and `force` is not given; a caller that leaves stops nothing.

        `loaders` is what polkit's rules saw of who loaded them: what another user loaded since stays loaded.
        """
        caller = replace(caller, reason=reason, on_behalf_of=on_behalf_of)
        if dry_run:
            return await self._assessed(record, caller)
        work = asyncio.get_running_loop().create_task(self._respond(record, caller, loaders, force=force))
        return await run_to_completion(work)

    async def _assessed(self, record: Vulnerability, caller: Caller) -> ResponseOutcome:
        reports = await asyncio.to_thread(assess, record, self._installed, self._facts)
        uses, history_known = await self._uses(record, caller)
        outcome = ResponseOutcome(record, "assessed", reports, uses, history_known=history_known)
        return replace(outcome, proven=_is_proven(reports, uses))

    async def _respond(
        self, record: Vulnerability, caller: Caller, loaders: Loaders | None, *, force: bool
    ) -> ResponseOutcome:
        async with self._lock:
            await self.refuse_change(record)
            assessed = await self._assessed(record, caller)
            if not any(report.verdict.concerns for report in assessed.kernels):
                return assessed
            busy = [use.module for use in assessed.uses if use.in_use]
            if busy and not force:
                self._tell(STOPPED, record, f"{record.id} was not answered: {_listed(busy)} in use", caller)
                return replace(assessed, stage="in-use")
            await self._block(record, assessed, caller)
            unloaded, remaining = await self._unload(record, caller, loaders)
            again = await self._assessed(record, caller)
            outcome = replace(again, stage="responded", unloaded=unloaded, still_loaded=remaining)
            state = "kept out by every route" if outcome.proven else "kept out as far as possible"
            self._tell(BEGUN, record, f"{record.id}: {_listed(record.modules)} {state}", caller, proven=outcome.proven)
            return outcome

    async def _block(self, record: Vulnerability, assessed: ResponseOutcome, caller: Caller) -> None:
        """Write the rules; the response is kept first, so that none is without an owner."""
        kept = await self.all()
        before = next((response for response in kept if response.id == record.id), None)
        if before is None and len(kept) >= RESPONSES_MAX:
            raise Conflict(f"there are {RESPONSES_MAX} responses", evidence=Evidence(hint="kmodctl respond end ID"))
        entries = await self._rules.blacklisted()
        running = next((report for report in assessed.kernels if report.running), None)
        image = set() if running is None else _placed(running, Placement.BUILTIN)
        owned = {} if before is None else {rule.module: rule for rule in before.rules}
        changes = []
        for name in record.modules:
            entry = entries.get(name)
            if name in image or (entry is not None and entry.hard):
                continue
            owned[name] = _owned(name, entry)
            changes.append(_change(RuleAction.BLACKLIST_HARD, name, _reason(record.id)))
        response = Response(
            record,
            tuple(owned.values()),
            before.begun if before is not None else self._clock(),
            caller.uid,
            caller.reason,
        )
        others = [each for each in kept if each.id != record.id]
        await asyncio.to_thread(self._write, (*others, response))
        try:
            for error in (await self._rules.write_all(changes, caller)).values():
                raise error
        except KmoddError:
            await asyncio.to_thread(self._write, kept)
            raise

    async def _unload(
        self, record: Vulnerability, caller: Caller, loaders: Loaders | None
    ) -> tuple[tuple[ModuleName, ...], Mapping[ModuleName, str]]:
        unloaded: list[ModuleName] = []
        remaining: dict[ModuleName, str] = {}
        for name in record.modules:
            if not _is_resident(await self._explainer.explain(name)):
                continue
            request = Request((Operation(Verb.UNLOAD, name),), reason=caller.reason, on_behalf_of=caller.on_behalf_of)
            try:
                plan = self._operations.plan(request)
                if plan.unread or plan.unseen:
                    plan = self._operations.plan(request, await self._operations.look(plan))
                if plan.error is not None:
                    raise plan.error
                check_loaders(loaders, plan, caller.uid)
                unloaded += await self._operations.run(plan, caller)
            except KmoddError as error:
                remaining[name] = error.message
        return tuple(unloaded), remaining

    async def end(
        self, key: str, caller: Caller, modules: Collection[ModuleName], *, reason: str = "", on_behalf_of: str = ""
    ) -> tuple[ModuleName, ...]:
        """Remove the rules that a response wrote; the answer names their modules. NoSuchResponse, Conflict, NotPermitted.

        `modules` are those that polkit's rules saw: a response that has others since is not ended.
        """
        caller = replace(caller, reason=reason, on_behalf_of=on_behalf_of)
        return await run_to_completion(asyncio.get_running_loop().create_task(self._end(key, caller, modules)))

    async def _end(
        self, key: str, caller: Caller, modules: Collection[ModuleName], because: str = ""
    ) -> tuple[ModuleName, ...]:
        async with self._lock:
            response = await self.find(key)
            if not set(response.modules) <= set(modules):
                raise Conflict(f"the response {key} changed since authorization; try again", argument="id")
            others = [each for each in await self.all() if each.id != key]
            entries = await self._rules.blacklisted()
            changes: list[RuleChange] = []
            removed: list[ModuleName] = []
            for rule in response.rules:
                entry = entries.get(rule.module)
                if entry is None or not entry.hard or entry.reason != _reason(key):
                    continue  # removed, or changed on purpose since
                heir = next((n for n, other in enumerate(others) if rule.module in other.vulnerability.modules), None)
                if heir is not None:
                    other = others[heir]
                    own = (each for each in other.rules if each.module != rule.module)
                    others[heir] = replace(other, rules=(*own, rule))
                    changes.append(_change(RuleAction.BLACKLIST_HARD, rule.module, _reason(other.id)))
                else:
                    changes.append(_restored(rule))
                    removed.append(rule.module)
            # Who inherits a rule is known before the rule says so, and this one until its rules are gone.
            await asyncio.to_thread(self._write, (*others, response))
            for error in (await self._rules.write_all(changes, caller)).values():
                raise error
            await asyncio.to_thread(self._write, others)
            rules = (
                f"the rules about {', '.join(removed)} are removed" if removed else "no rule of it is left to remove"
            )
            self._tell(ENDED, response.vulnerability, f"{key} ended{because}: {rules}", caller)
            return tuple(removed)

    async def expire(self) -> None:
        """End the responses whose vulnerability is fixed in the running kernel; what goes wrong is a finding of health."""
        self._trouble = ""
        try:
            for response in await self.all():
                reports = await asyncio.to_thread(assess, response.vulnerability, self._installed, self._facts)
                running = next((report for report in reports if report.running), None)
                if running is not None and running.verdict is Verdict.FIXED:
                    await self._end(
                        response.id, _ITSELF, response.modules, f", for the running kernel is {running.because}"
                    )
        except (KmoddError, OSError) as error:
            self._trouble = f"A response cannot be checked or ended: {error}."

    # --- what uses the modules ----------------------------------------------------------------------------------------

    async def _uses(self, record: Vulnerability, caller: Caller) -> tuple[tuple[ModuleUse, ...], bool]:
        lines = await asyncio.to_thread(self._autoload)
        uses, readable = [], True
        for name in record.modules:
            explanation = redact(await self._explainer.explain(name), View(caller.uid))
            try:
                query = HistoryQuery(name, _LOADS, max(0, self._clock() - _PAST_USEC), limit=_LOADS_MAX)
                loads = await self._history(query, caller)
            except KmoddError:
                loads, readable = (), False
            use = _use(name, explanation)
            autoload = tuple(f"{rule.file}:{rule.line}" for rule in lines if rule.module == name)
            last = max((entry.time for entry in loads), default=0)
            uses.append(replace(use, loads=len(loads), last_load=last, autoload=autoload))
        return tuple(uses), readable

    def _tell(
        self, event: str, record: Vulnerability, message: str, caller: Caller, *, proven: bool | None = None
    ) -> None:
        extra = {"RESPONSE": record.id}
        if proven is not None:
            extra["PROVEN"] = "yes" if proven else "no"
        self._audit.record(
            Record(
                event,
                message,
                action="end-response" if event == ENDED else _HERE,
                result="unchanged" if event == STOPPED else "changed",
                uid=caller.uid,
                sender=caller.sender,
                exe=caller.exe,
                login_uid=caller.login_uid,
                on_behalf_of=caller.on_behalf_of,
                reason=caller.reason,
                priority=5,
                extra=extra,
            ).about(record.modules)
        )


def _is_resident(explanation: Explanation) -> bool:
    return explanation.state in _RESIDENT


def _use(name: ModuleName, explanation: Explanation) -> ModuleUse:
    loaded = _is_resident(explanation)
    used = bool(explanation.references or explanation.holders or explanation.users or explanation.disconnects)
    return ModuleUse(
        name,
        loaded=loaded,
        builtin=explanation.state is State.BUILTIN,
        in_use=loaded and used,
        references=explanation.references,
        holders=explanation.holders,
        users=tuple(f"{user.kind} {user.name}" for user in explanation.users),
        partial=explanation.partial,
        free=explanation.free,
    )


def _is_proven(reports: Iterable[KernelReport], uses: Iterable[ModuleUse]) -> bool:
    """No request loads them where that matters, they are in no such image, and none of them is there now."""
    concerned = [report for report in reports if report.verdict.concerns]
    kept_out = all(report.blocked and not _placed(report, Placement.BUILTIN) for report in concerned)
    loaded = any(report.running for report in concerned) and any(use.loaded for use in uses)
    return kept_out and not loaded


def _placed(report: KernelReport, placement: Placement) -> set[ModuleName]:
    return {name for name, place in report.placements.items() if place is placement}


def _versions(record: Vulnerability) -> tuple[object, ...]:
    """Which kernels are corrected, and so when a response ends by itself."""
    return frozenset(record.fixed), record.unaffected_from, record.unaffected_before


def _owned(name: ModuleName, entry: Entry | None) -> OwnedRule:
    return OwnedRule(name) if entry is None else OwnedRule(name, "blacklist", entry.reason)


def _restored(rule: OwnedRule) -> RuleChange:
    if rule.before:
        return _change(RuleAction.BLACKLIST, rule.module, rule.before_reason)
    return _change(RuleAction.UNBLACKLIST, rule.module, "")


def _change(action: RuleAction, module: ModuleName, reason: str) -> RuleChange:
    return RuleChange(action, module, reason=reason)


def _reason(key: str) -> str:
    """What stands above a rule in the file, and tells whose it is."""
    return (
        f"kmodctl respond {key}"
        if is_cve(key)
        else f"kmodctl respond --module {key.partition(':')[2].replace(',', ' ')}"
    )


def _listed(modules: Sequence[str]) -> str:
    return f"{', '.join(modules)} {'is' if len(modules) == 1 else 'are'}"
