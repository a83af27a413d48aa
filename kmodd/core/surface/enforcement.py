# SPDX-License-Identifier: LGPL-2.1-or-later
"""Learns what this system needs, applies the policy for the attack surface, and checks that its rules act."""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import TypeVar

from kmodd.core.audit.records import evidence_fields
from kmodd.core.desired.state import Documents
from kmodd.core.events import Audit, Clock, HistoryReader
from kmodd.core.operations.jobs import run_to_completion
from kmodd.core.rules import managed_files as own_files
from kmodd.core.surface.policy import NeedsCollector, applies, decide, read_policy, remarks
from kmodd.core.surface.rule_file import (
    TRIAL_FILE,
    RuleFileWriter,
    blocked_by,
    ineffective,
    is_surface_file,
    on_trial,
    trial_end,
    without_trial,
)
from kmodd.core.trial import STOPPED, UNCONFIRMED, TrialDeadline, in_utc
from kmodd.errors import Conflict, Evidence, Failed, KmoddError, LimitsExceeded, ModuleTreeMissing, errno_name
from kmodd.kernel.ports import (
    Configuration,
    Facts,
    InstalledKernels,
    LoadedModules,
    ModuleIndex,
    NeedSources,
)
from kmodd.model import KMODD, Caller, HistoryQuery, Record
from kmodd.model.rules import ManagedFile
from kmodd.model.surface import Because, Decision, Fault, Mode, Needs, Reach, Reading, SurfacePlan, Want
from kmodd.names import ModuleName

FILE = ManagedFile.SURFACE
FILE_MAX = 1 << 20
"""Bytes of the rule file."""
HISTORY_DAYS = 90
HISTORY_MAX = 5000
"""Records that are read of that time."""
NAMED_MAX = 8
"""Modules that a message names."""
APPLY, CONFIRM, REVERT = "surface-apply", "surface-confirm", "surface-revert"
_LOADS = ("module.loaded", "module.reloaded", "module.appeared")
_DAY = 86_400_000_000

Answer = TypeVar("Answer")


class Enforcement:
    """One plan, application or check at a time, each in a thread."""

    def __init__(
        self,
        installed: InstalledKernels,
        sources: NeedSources,
        folders: Configuration,
        documents: Documents,
        *,
        loaded: LoadedModules,
        facts: Facts,
        index: ModuleIndex,
        history: HistoryReader,
        desired: Callable[[], Iterable[tuple[ModuleName, str]]],
        audit: Audit,
        clock: Clock,
        forgotten: Callable[[], None] = lambda: None,
    ) -> None:
        """`documents` are those of surface.d; `desired` answers the modules of the desired state, each with its place.

        `forgotten` is called when the memory of a computation is free.
        """
        self._installed = installed
        self._sources = sources
        self._folders = folders
        self._documents = documents
        self._loaded = loaded
        self._facts = facts
        self._index = index
        self._history = history
        self._desired = desired
        self._audit = audit
        self._clock = clock
        self._forgotten = forgotten
        self._lock = asyncio.Lock()
        self._deadline = TrialDeadline(clock, lambda: self._take_back(KMODD, UNCONFIRMED))

    # --- queries -----------------------------------------------------------------------------------------------------

    async def needs(self, kernel: str, *, initramfs: bool = True) -> Needs:
        """What this system needs in a kernel, or in every installed one; ModuleTreeMissing."""
        return await self._in_thread(lambda: self._needs(self._releases(kernel), (), initramfs=initramfs))

    async def trial(self) -> str:
        """The trial that is under way, as a clause; empty for none."""
        text = await self._in_thread(self._on_trial)
        return "" if text is None else _trial_message(text)

    async def plan(self) -> SurfacePlan:
        """What the policy blocks, and why; Conflict for a file of surface.d that is not valid."""
        return await self._in_thread(self._plan)

    async def check(self, kernel: str) -> tuple[Fault, ...]:
        """What is not as the policy says in a kernel, or in every installed one; ModuleTreeMissing, Conflict."""
        return await self._in_thread(lambda: tuple(self._check(self._releases(kernel))))

    async def apply(self, caller: Caller, *, weaken: bool, dry_run: bool, reason: str, trial: int = 0) -> SurfacePlan:
        """Write the rules; nothing is unloaded. A change that was begun is finished, also when the caller leaves.

        With `trial` they hold for so many seconds, unless they are confirmed. Conflict where another file undoes a rule, where
        ours was edited, where modules would be allowed again without `weaken`, and while rules are on trial;
        LimitsExceeded, NotPermitted.
        """
        return await self._to_the_end(
            caller, APPLY, reason, lambda: self._apply(weaken=weaken, dry_run=dry_run, trial=trial), dry_run=dry_run
        )

    async def confirm(self, caller: Caller, reason: str) -> SurfacePlan:
        """Keep the rules that are on trial; Conflict where there are none, and as `apply`."""
        return await self._to_the_end(caller, CONFIRM, reason, self._confirm)

    async def revert(self, caller: Caller, reason: str) -> SurfacePlan:
        """Take the rules back that are on trial; Conflict where there are none, NotPermitted."""
        plan = await self._take_back(caller, reason)
        if plan is None:
            raise _no_trial()
        return plan

    def start(self) -> None:
        """Go on with a trial that an earlier process began, up to its end."""
        try:
            text = self._folders.read(TRIAL_FILE)
        except OSError:
            text = b""
        if text is not None:
            self._deadline.set(trial_end(text))

    async def close(self) -> None:
        """End a trial: nothing would end it while kmodd is stopped."""
        await self._deadline.close()
        with suppress(KmoddError):
            await self._take_back(KMODD, STOPPED)

    async def _take_back(self, caller: Caller, reason: str) -> SurfacePlan | None:
        """None without a trial."""
        if await self._in_thread(self._on_trial) is None:
            return None
        return await self._to_the_end(caller, REVERT, reason, self._revert)

    async def _to_the_end(
        self, caller: Caller, action: str, reason: str, work: Callable[[], SurfacePlan], *, dry_run: bool = False
    ) -> SurfacePlan:
        task = asyncio.get_running_loop().create_task(self._recorded(caller, action, reason, work, dry_run=dry_run))
        return await run_to_completion(task)

    async def _in_thread(self, work: Callable[[], Answer]) -> Answer:
        async with self._lock:
            try:
                return await asyncio.to_thread(work)
            finally:
                self._forgotten()

    # --- what it needs ------------------------------------------------------------------------------------------------

    def _releases(self, kernel: str) -> tuple[str, ...]:
        releases = self._installed.releases()
        if kernel and kernel not in releases:
            raise ModuleTreeMissing(
                f"no modules are installed for kernel {kernel}",
                evidence=Evidence(hint="kmodctl surface --json lists the installed kernels"),
            )
        return (kernel,) if kernel else releases

    def _needs(self, releases: Sequence[str], allowed: Iterable[tuple[ModuleName, str]], *, initramfs: bool) -> Needs:
        learning = NeedsCollector()
        blocked = self._blocked()
        readings = (
            *self._own_readings(blocked),
            Reading("allow", tuple(Want(name, place) for name, place in allowed)),
            *self._sources.read(),
        )
        for release in releases:
            with self._installed.index(release, surface=b"") as index:
                images = (self._sources.initramfs(release),) if initramfs else ()
                learning.kernel(release, index, (*readings, *images))
        return learning.needs()

    def _own_readings(self, blocked: Collection[ModuleName]) -> tuple[Reading, ...]:
        """What kmodd itself knows. What is loaded in spite of our rule is not needed for that."""
        try:
            loaded = Reading(
                "loaded", tuple(Want(name, "it is loaded") for name in self._loaded.snapshot() if name not in blocked)
            )
        except OSError as error:
            loaded = Reading("loaded", fault=_unread(error))
        try:
            rules = self._folders.autoload()
            autoload = Reading(
                "modules-load.d", tuple(Want(rule.module, f"{rule.file}, line {rule.line}") for rule in rules)
            )
        except OSError as error:
            autoload = Reading("modules-load.d", fault=_unread(error))
        desired = Reading("desired-state", tuple(Want(name, place) for name, place in self._desired()))
        return loaded, self._past(blocked), desired, autoload

    def _past(self, blocked: Collection[ModuleName]) -> Reading:
        """What was loaded lately."""
        try:
            entries = self._history.read(
                HistoryQuery(events=_LOADS, since=self._clock() - HISTORY_DAYS * _DAY, limit=HISTORY_MAX)
            )
        except OSError as error:
            return Reading("history", fault=_unread(error))
        wants: dict[str, Want] = {}
        for entry in entries:
            day = datetime.fromtimestamp(entry.time / 1_000_000, UTC).date()
            by = f" by {entry.record.exe}" if entry.record.exe else ""
            for name in entry.record.names:
                if name not in blocked:
                    wants[name] = Want(name, f"loaded on {day}{by}")
        return Reading("history", tuple(wants.values()))

    def _blocked(self) -> frozenset[ModuleName]:
        """The modules that our file keeps out now; none where it cannot be read, which `_old` reports."""
        blocked = frozenset[ModuleName]()
        for file in (FILE, TRIAL_FILE):
            with suppress(OSError):
                text = self._folders.read(file)
                if text is not None and is_surface_file(text):
                    blocked |= blocked_by(self._folders.parse(file, text))
        return blocked

    # --- the plan -----------------------------------------------------------------------------------------------------

    def _plan(self, releases: Sequence[str] = ()) -> SurfacePlan:
        policy = read_policy(self._documents.read())
        releases = releases or self._releases("")
        today = self._today()
        allowed = [(name, rule.place) for name, rule in policy.allow.items() if applies(rule, releases, today)]
        # What an image has decides about drivers only, and takes seconds to read.
        needs = self._needs(releases, allowed, initramfs=Reach.HARDWARE in policy.scope)
        loaded = frozenset(self._loaded.snapshot())
        spellings = RuleFileWriter()
        reaches: dict[ModuleName, Reach] = {}
        dependents: dict[ModuleName, set[ModuleName]] = {}
        for release in releases:
            self._look(release, reaches, dependents, spellings)
        decisions = decide(
            policy, needs, reaches, kernels=releases, loaded=loaded, today=today, dependents=dependents
        )  # fmt: skip
        old = self._old()
        before = frozenset[ModuleName]() if old is None else blocked_by(self._folders.parse(FILE, old))
        text = spellings.render(decisions) if policy.mode is Mode.ENFORCE else None
        after = frozenset[ModuleName]() if text is None else blocked_by(self._folders.parse(FILE, text))
        return SurfacePlan(
            policy.mode,
            tuple(releases),
            decisions,
            text,
            old,
            block=tuple(sorted(after - before)),
            release=tuple(sorted(before - after)),
            remarks=tuple(remarks(policy, decisions, needs, kernels=releases, today=today)),
        )

    def _look(
        self,
        release: str,
        reaches: dict[ModuleName, Reach],
        dependents: dict[ModuleName, set[ModuleName]],
        spellings: RuleFileWriter,
    ) -> None:
        # The tables of what the kernel requests are not for an idle daemon.
        from kmodd.core.surface.surface import compute

        facts = replace(self._facts.read(), release=release)
        with self._installed.index(release, surface=b"") as index:
            surface = compute(index, self._installed.tables(release), facts, running=False)
            for exposure in surface.exposures:
                before = reaches.get(exposure.module, Reach.NONE)
                reaches[exposure.module] = min(before, exposure.without, key=lambda reach: reach.rank)
                for name in index.dependencies(exposure.module):
                    dependents.setdefault(name, set()).add(exposure.module)
            spellings.kernel(index, (exposure.module for exposure in surface.exposures))

    def _old(self) -> bytes | None:
        """Our file as it is; Conflict for one that is not as kmodd wrote it."""
        try:
            text = self._folders.read(FILE)
        except OSError as error:
            raise own_files.refusal(FILE, error) from error
        if text is not None and not is_surface_file(text):
            raise own_files.foreign(FILE)
        if text is not None and not own_files.is_intact(text):
            raise own_files.edited(FILE, own_files.edit_of(self._folders, FILE, text))
        return text

    def _today(self) -> date:
        return datetime.fromtimestamp(self._clock() / 1_000_000, UTC).date()

    # --- the application ----------------------------------------------------------------------------------------------

    async def _recorded(
        self, caller: Caller, action: str, reason: str, work: Callable[[], SurfacePlan], *, dry_run: bool
    ) -> SurfacePlan:
        begun = self._clock()
        try:
            plan = await self._in_thread(work)
        except KmoddError as error:
            self._record(caller, action, reason, begun, None, error)
            raise
        if not dry_run:
            self._index.refresh()
            # Here, and not where the caller waits, who may have left, or be overtaken by the next trial.
            if plan.until:
                self._deadline.set(plan.until)
            else:
                self._deadline.cancel()
            self._record(caller, action, reason, begun, plan, None)
        return plan

    def _apply(self, *, weaken: bool, dry_run: bool, trial: int) -> SurfacePlan:
        # It takes no seconds, and the plan does.
        if (text := self._on_trial()) is not None:
            raise Conflict(
                _trial_message(text),
                evidence=Evidence(file=TRIAL_FILE, hint="kmodctl surface confirm, or kmodctl surface revert"),
            )
        plan = self._plan()
        if plan.release and trial:
            raise Conflict(
                f"a trial blocks modules and allows none, and {_counted(plan.release)} would be allowed again: "
                f"{_named(plan.release)}",
                evidence=Evidence(hint="kmodctl surface apply --weaken, without --try"),
            )
        if plan.release and not weaken:
            raise Conflict(
                f"{_counted(plan.release)} would be allowed again: {_named(plan.release)}",
                evidence=Evidence(hint="kmodctl surface plan, then kmodctl surface apply --weaken"),
            )
        if plan.text == plan.old:
            return plan
        if plan.text is not None:
            self._try(plan, plan.text)
        if dry_run:
            return plan
        if trial and plan.text is not None:
            until = self._clock() + trial * 1_000_000
            written = on_trial(plan.text, until)
            own_files.replace_file(self._folders, TRIAL_FILE, written, None)
            self._prove(plan.kernels, TRIAL_FILE, written, None)
            return replace(plan, until=until)
        own_files.replace_file(self._folders, FILE, plan.text, plan.old)
        if plan.text is not None:
            self._prove(plan.kernels, FILE, plan.text, plan.old)
        return plan

    def _on_trial(self) -> bytes | None:
        try:
            return self._folders.read(TRIAL_FILE)
        except OSError as error:
            raise own_files.refusal(TRIAL_FILE, error) from error

    def _confirm(self) -> SurfacePlan:
        text = self._on_trial()
        if text is None:
            raise _no_trial()
        if not trial_end(text):
            raise own_files.edited(TRIAL_FILE, own_files.edit_of(self._folders, TRIAL_FILE, text))
        old, new, kernels = self._old(), without_trial(text), self._releases("")
        before = frozenset[ModuleName]() if old is None else blocked_by(self._folders.parse(FILE, old))
        after = blocked_by(self._folders.parse(FILE, new))
        if not before <= after:
            raise Conflict(
                f"{FILE} was changed since the trial began",
                evidence=Evidence(file=FILE, hint="kmodctl surface revert, then kmodctl surface apply"),
            )
        own_files.replace_file(self._folders, FILE, new, old)
        self._prove(kernels, FILE, new, old)
        own_files.replace_file(self._folders, TRIAL_FILE, None, text)
        return SurfacePlan(Mode.ENFORCE, kernels, (), new, old, block=tuple(sorted(after - before)), release=())

    def _revert(self) -> SurfacePlan:
        """Remove the file, edited or not: its name is kmodd's."""
        text = self._on_trial()
        if text is None:
            raise _no_trial()
        own_files.replace_file(self._folders, TRIAL_FILE, None, text)
        freed = blocked_by(self._folders.parse(TRIAL_FILE, text)) - self._blocked()
        return SurfacePlan(Mode.ENFORCE, (), (), None, text, block=(), release=tuple(sorted(freed)))

    def _try(self, plan: SurfacePlan, text: bytes) -> None:
        """Resolve everything with the new rules before they are written; Conflict names the line that undoes one."""
        if len(text) > FILE_MAX:
            raise LimitsExceeded(f"{FILE} would be larger than {FILE_MAX >> 10} KiB")
        rules = self._folders.parse(FILE, text)
        blocked = {decision.module for decision in plan.decisions if decision.blocked}
        if not own_files.is_harmless(rules) or blocked_by(rules) != blocked:
            raise Failed(f"the new text of {FILE} does not read back as written")
        for fault in self._ineffective(plan.kernels, blocked, text):
            raise _error(fault)

    def _prove(self, kernels: Sequence[str], file: ManagedFile, text: bytes, old: bytes | None) -> None:
        """Resolve everything with the files as they are now; what does not act is taken back."""
        blocked = blocked_by(self._folders.parse(file, text))
        for fault in self._ineffective(kernels, blocked, None):
            error = _error(fault)
            try:
                own_files.replace_file(self._folders, file, old, text)
            except KmoddError:
                error = replace(error, message=f"{error.message}; {file} stays changed")
            raise error

    def _ineffective(
        self, kernels: Sequence[str], modules: Collection[ModuleName], text: bytes | None
    ) -> Iterable[Fault]:
        """Rules that do not act; parts of a kernel image are not among them, which no rule could keep out."""
        for release in kernels:
            with self._installed.index(release, surface=text) as index:
                yield from (fault for fault in ineffective(index, release, modules) if fault.kind != "builtin")

    def _record(
        self, caller: Caller, action: str, reason: str, begun: int, plan: SurfacePlan | None, error: KmoddError | None
    ) -> None:
        extra: Mapping[str, str] = {} if error is None else evidence_fields(error)
        event, message, result = "operation.failed", "" if error is None else error.message, "failed"
        if plan is not None:
            changed = plan.text != plan.old
            event = "policy.applied" if changed else "operation.unchanged"
            result = "changed" if changed else "unchanged"
            message = f"{_counted(plan.block)} blocked, {_counted(plan.release)} allowed again"
            if plan.until:
                message += f", on trial until {in_utc(plan.until)}"
            file = TRIAL_FILE if plan.until or action == REVERT else FILE
            extra = {
                "FILE": file if changed else "",
                "MODE": plan.mode,
                "BLOCKED": " ".join(plan.block),
                "ALLOWED": " ".join(plan.release),
                "UNTIL": str(plan.until or ""),
            }
        record = Record(
            event,
            message,
            action=action,
            result=result,
            error=error.name() if error is not None else "",
            uid=caller.uid,
            sender=caller.sender,
            exe=caller.exe,
            login_uid=caller.login_uid,
            on_behalf_of=caller.on_behalf_of,
            reason=reason,
            duration_usec=self._clock() - begun,
            errno=error.evidence.errno if error is not None else None,
            hint=error.evidence.hint if error is not None else "",
            priority=4 if error is not None else 5,
            extra={name: value for name, value in extra.items() if value},
        )
        self._audit.record(record)

    # --- the check ----------------------------------------------------------------------------------------------------

    def _check(self, releases: Sequence[str]) -> Iterable[Fault]:
        try:
            plan = self._plan(releases)
        except Conflict as error:
            if error.evidence.file != FILE:
                raise
            yield Fault("edited", error.message, file=FILE, hint=error.evidence.hint)
            return
        yield from plan.remarks
        there = frozenset[ModuleName]() if plan.old is None else blocked_by(self._folders.parse(FILE, plan.old))
        decided = {decision.module: decision for decision in plan.decisions}
        tried = frozenset[ModuleName]()
        if (text := self._on_trial()) is not None:
            tried = blocked_by(self._folders.parse(TRIAL_FILE, text))
            yield Fault(
                "trial",
                _trial_message(text),
                file=TRIAL_FILE,
                hint="kmodctl surface confirm, or kmodctl surface revert",
            )
        for module in plan.block:
            if module in tried:
                continue
            yield Fault(
                "missing",
                f"{module} is not blocked ({decided[module].detail})",
                module=module,
                hint="kmodctl surface apply",
            )
        for module in plan.release:
            yield _superfluous(module, decided.get(module), plan.mode)
        for release in plan.kernels:
            with self._installed.index(release) as index:
                yield from ineffective(index, release, there)
        loaded = self._loaded.snapshot() if self._facts.read().release in plan.kernels else {}
        for module in sorted(there):
            if module in loaded:
                yield Fault(
                    "loaded",
                    f"{module} is loaded although it is blocked",
                    module=module,
                    hint=f"kmodctl why {module}; kmodctl unload {module}",
                )


def _trial_message(text: bytes) -> str:
    end = trial_end(text)
    return f"rules are on trial until {in_utc(end)}" if end else f"{TRIAL_FILE} has rules on trial and was edited"


def _no_trial() -> Conflict:
    return Conflict("no rules are on trial", evidence=Evidence(hint="kmodctl surface apply --try 10m"))


def _superfluous(module: ModuleName, decision: Decision | None, mode: Mode) -> Fault:
    hint = "kmodctl surface apply --weaken"
    if decision is not None and not decision.blocked and decision.because in (Because.FLOOR, Because.NEEDED):
        kernels = " ".join(decision.reasons[0].kernels)
        return Fault(
            "needed", f"{module} is blocked, and needed ({decision.detail}; kernel {kernels})", module=module, hint=hint
        )
    why = (
        f"mode is {mode}" if mode is not Mode.ENFORCE else (decision.detail if decision is not None else "out of scope")
    )
    return Fault(
        "superfluous", f"{module} is blocked, and the policy does not say so ({why})", module=module, hint=hint
    )


def _error(fault: Fault) -> KmoddError:
    evidence = Evidence(file=fault.file, line=fault.line, hint=fault.hint)
    if fault.kind == "undone":
        return Conflict(fault.message, module=fault.module or "", evidence=evidence)
    return Failed(fault.message, module=fault.module or "", evidence=evidence)


def _named(modules: Sequence[ModuleName]) -> str:
    more = len(modules) - NAMED_MAX
    return ", ".join(modules[:NAMED_MAX]) + (f" and {more} more" if more > 0 else "")


def _counted(modules: Collection[ModuleName]) -> str:
    return f"{len(modules)} module{'' if len(modules) == 1 else 's'}"


def _unread(error: OSError) -> str:
    return f"cannot be read ({errno_name(error.errno or 0)})"
