# SPDX-License-Identifier: LGPL-2.1-or-later
"""Lists module rules with their findings, and changes kmodd's own files."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from kmodd.core.audit.records import failed_record
from kmodd.core.events import Audit, Clock, ConfigurationChanged, Events
from kmodd.core.operations.jobs import run_to_completion
from kmodd.core.planning.insert import tree_missing
from kmodd.core.planning.parameters import check_parameters, ended_early, read_options
from kmodd.core.planning.planned_state import has_soft_targets
from kmodd.core.planning.policy import COMMAND_LINE, Policy, is_denial
from kmodd.core.rules import managed_files as own_files
from kmodd.core.rules.managed_files import FileChange, amend, edited, files_of, foreign, refusal
from kmodd.core.rules.rules import ManagedFileState, judge
from kmodd.errors import Builtin, Conflict, Evidence, Failed, KmoddError, LimitsExceeded, NoSuchModule
from kmodd.kernel.ports import Configuration as Folders
from kmodd.kernel.ports import Facts, ModuleIndex
from kmodd.model import Caller, Record, Result, Rule
from kmodd.model.arguments import displayed
from kmodd.model.rules import ManagedFile, RuleAction, RuleChange, RuleFiles, ShownRule, way_out
from kmodd.names import ModuleName
from kmodd.suggestions import which_module

FILE_MAX = 256 * 1024
"""Bytes of one of our files."""

_DONE = {
    RuleAction.ENABLE_AUTOLOAD: "is loaded at boot",
    RuleAction.DISABLE_AUTOLOAD: "is no longer loaded at boot by kmodd's file",
    RuleAction.SET_OPTIONS: "has new options from the next load on",
    RuleAction.BLACKLIST: "is blacklisted",
    RuleAction.BLACKLIST_HARD: "is blacklisted, by name too",
    RuleAction.UNBLACKLIST: "is no longer blacklisted by kmodd's file",
}


class Configuration:
    """One writer at a time; what is read and written is read and written in a thread."""

    def __init__(
        self,
        folders: Folders,
        index: ModuleIndex,
        facts: Facts,
        policy: Policy,
        *,
        audit: Audit,
        events: Events,
        clock: Clock,
    ) -> None:
        self._folders = folders
        self._index = index
        self._facts = facts
        self._policy = policy
        self._audit = audit
        self._events = events
        self._clock = clock
        self._lock = asyncio.Lock()

    # --- kmodd's own files --------------------------------------------------------------------------------------------

    def check(self, change: RuleChange, *, authorized: bool = False) -> None:
        """Raise errors known from public facts, before the caller is prompted for a password.

        NoSuchModule, ModuleTreeMissing, Builtin, UnknownParameter, BadParameter, DisabledByPolicy, Conflict. Lines of files that
        not everyone may read count only for a caller that is `authorized`: otherwise the answer would tell a right guess from a
        wrong one.
        """
        self._index.refresh()
        name = change.module
        match change.action:
            case RuleAction.ENABLE_AUTOLOAD:
                self._check_exists(name)
                self._policy.check_load(name, self._facts.read().command_line)
            case RuleAction.SET_OPTIONS if change.parameters:
                self._check_exists(name)
            case RuleAction.BLACKLIST | RuleAction.BLACKLIST_HARD if self._index.is_builtin(name):
                raise Builtin(f"{name} is built into the kernel, so blacklisting has no effect", module=name)
            case RuleAction.BLACKLIST_HARD:
                self._check_first_lines(name)
        if change.parameters:
            if self._index.is_builtin(name):
                raise Builtin(
                    f"{name} is built into the kernel, its parameters can only be set on the kernel command line",
                    module=name,
                )
            check_parameters(self._index.info(name), change.parameters)
            self._check_last_options(change, authorized=authorized)

    async def write(self, change: RuleChange, caller: Caller) -> None:
        """Bring our files in line. Besides the errors of `check`, which is called again: Conflict, NotPermitted, LimitsExceeded.

        A change that was begun is finished, also when the caller leaves.
        """
        for error in (await self.write_all((change,), caller)).values():
            raise error

    async def write_all(self, changes: Sequence[RuleChange], caller: Caller) -> Mapping[int, KmoddError]:
        """Make all of these changes or none; the answer is empty, or what was in the way of which, by their numbers.

        All of them are dry runs or none is.
        """
        return await run_to_completion(asyncio.get_running_loop().create_task(self._locked(changes, caller)))

    async def blacklisted(self) -> Mapping[ModuleName, own_files.Entry]:
        """What kmodd's own file blacklists.

        Conflict for one that was edited or that another program wrote, NotPermitted for one that cannot be read.
        """
        file = ManagedFile.BLACKLIST

        def read() -> Mapping[ModuleName, own_files.Entry]:
            text = self._read(file)
            return {} if text is None else own_files.parse(file, text, self._folders.parse(file, text))

        return await asyncio.to_thread(read)

    async def _locked(self, changes: Sequence[RuleChange], caller: Caller) -> Mapping[int, KmoddError]:
        async with self._lock:
            begun = self._clock()
            refused: dict[int, KmoddError] = {}
            for number, change in enumerate(changes):
                try:
                    self.check(change, authorized=True)
                except KmoddError as error:
                    refused[number] = error
            written: Sequence[tuple[ManagedFile, ...]] = [()] * len(changes)
            if not refused:
                written, refused = await asyncio.to_thread(self._write, changes)
            for number, reason in refused.items():
                self._record(changes[number], caller, begun, (), reason)
            if refused or all(change.dry_run for change in changes):
                return refused
            if any(written):
                self._index.refresh()
            for change, files in zip(changes, written, strict=True):
                self._record(change, caller, begun, files, None)
                if files:
                    self._events.publish(ConfigurationChanged(change.module, files))
            return {}

    def _write(self, changes: Sequence[RuleChange]) -> tuple[Sequence[tuple[ManagedFile, ...]], dict[int, KmoddError]]:
        """The files that each change changes (or would), and what is in the way. All are sound before the first is written."""
        written: list[tuple[ManagedFile, ...]] = []
        refused: dict[int, KmoddError] = {}
        texts: dict[ManagedFile, FileChange] = {}
        for number, change in enumerate(changes):
            amended = dict(texts)
            try:
                written.append(tuple(file for file in files_of(change) if self._amend(file, change, amended)))
            except KmoddError as error:
                refused[number] = error
                written.append(())
            else:
                texts = amended
        if refused or any(change.dry_run for change in changes):
            return written, refused
        done: list[FileChange] = []
        for amendment in texts.values():
            try:
                own_files.replace_file(self._folders, amendment.file, amendment.new, amendment.old)
            except KmoddError as error:
                # The last step of a write may fail, which is telling the disk, with the new text in place.
                fault = self._take_back([*done, amendment] if self._is_written(amendment) else done, error)
                return written, {number: fault for number, files in enumerate(written) if amendment.file in files}
            done.append(amendment)
        return written, {}

    def _is_written(self, amendment: FileChange) -> bool:
        try:
            return self._folders.read(amendment.file) == amendment.new
        except OSError:
            return False

    def _take_back(self, done: Sequence[FileChange], error: KmoddError) -> KmoddError:
        """Put the former texts back after an error; the first error is reported, with what stays changed."""
        stay = []
        for amendment in reversed(done):
            try:
                own_files.replace_file(self._folders, amendment.file, amendment.old, amendment.new)
            except KmoddError:
                stay.append(f"; {amendment.file} stays changed")
        return replace(error, message=error.message + "".join(stay))

    def _amend(self, file: ManagedFile, change: RuleChange, texts: dict[ManagedFile, FileChange]) -> bool:
        """Change one file's text, on top of those that are to be written already; False when it says so already."""
        amendment = texts.get(file)
        old = self._read(file) if amendment is None else amendment.old
        current = old if amendment is None else amendment.new
        entries = {} if current is None else own_files.parse(file, current, self._folders.parse(file, current))
        wanted = amend(file, entries, change)
        if wanted == entries:
            return False
        new = own_files.render(file, wanted)
        if new is not None:
            if len(new) > FILE_MAX:
                raise LimitsExceeded(f"{file} would be larger than {FILE_MAX // 1024} KiB", module=change.module)
            # What modprobe and systemd-modules-load would make of it has to be what was meant.
            rules = self._folders.parse(file, new)
            if not own_files.is_harmless(rules) or own_files.parse(file, new, rules) != wanted:
                raise Failed(f"the new text of {file} does not read back as written")
        texts[file] = FileChange(file, old, new)
        return True

    def _read(self, file: ManagedFile) -> bytes | None:
        try:
            text = self._folders.read(file)
        except OSError as error:
            raise refusal(file, error) from error
        if text is not None and not own_files.is_ours(text):
            raise foreign(file)
        if text is not None and not own_files.is_intact(text):
            raise edited(file, own_files.edit_of(self._folders, file, text))
        return text

    def _check_exists(self, name: ModuleName) -> None:
        if self._index.exists(name):
            return
        facts = self._facts.read()
        if not facts.tree_present:
            raise tree_missing(name, facts.release)
        modules = self._index.resolve(name)
        if modules:
            raise NoSuchModule(
                f"{name} is an alias of {' and '.join(modules)}, not a module name",
                module=name,
                evidence=Evidence(hint=f"write {' or '.join(modules)}"),
            )
        raise NoSuchModule(
            f"no module {name} for kernel {facts.release}",
            module=name,
            evidence=Evidence(
                hint=which_module(name, (*self._index.available(), *self._index.builtins()))
                or "kmodctl list --state available"
            ),
        )

    def _check_first_lines(self, name: ModuleName) -> None:
        """Of several `install` or `softdep` lines the first acts: one that is read before ours may undo it.

        modprobe ignores `install` lines of a module with soft dependencies.
        """
        softdep = next((rule for rule in self._index.rules(name) if rule.kind == "softdep"), None)
        if (
            softdep is not None
            and not _is_read_after(softdep, ManagedFile.BLACKLIST)
            and softdep.file != ManagedFile.BLACKLIST
            and has_soft_targets(self._index, name)
        ):
            raise Conflict(
                f"a softdep line in {softdep.file}, line {softdep.line}, makes modprobe ignore every install line about {name}",
                module=name,
                evidence=_about(softdep),
            )
        first = next((rule for rule in self._index.rules(name) if rule.kind == "install"), None)
        if first is not None and first.file != ManagedFile.BLACKLIST and not is_denial(first):
            raise Conflict(
                f"an install line in {first.file}, line {first.line}, overrides loading {name} by name",
                module=name,
                evidence=_about(first),
            )

    def _check_last_options(self, change: RuleChange, *, authorized: bool) -> None:
        """Of several values the kernel keeps the last: one that is read after ours would undo it.

        Distributions do that, such as systemd's own `options dummy numdummies=0`.
        """
        wanted = dict(change.parameters)
        options = read_options(self._index.rules(change.module))
        end = options.end
        if end is not None and not _is_read_after(end, ManagedFile.OPTIONS) and (end.public or authorized):
            raise ended_early(change.module, end, options)
        for each in options.assignments:
            rule = each.rule
            if not rule.public and not authorized:
                continue
            if _is_read_after(rule, ManagedFile.OPTIONS) and wanted.get(each.name, each.value) != each.value:
                place = rule.file if rule.file == COMMAND_LINE else f"{rule.file}, line {rule.line},"
                raise Conflict(
                    f"{place} gives parameter {each.name} of {change.module} another value, which takes precedence",
                    module=change.module,
                    argument=each.name,
                    evidence=replace(_about(rule), parameter=each.name),
                )

    def _record(
        self, change: RuleChange, caller: Caller, begun: int, written: Sequence[str], error: KmoddError | None
    ) -> None:
        extra = {"FILE": " ".join(written)} if written else {}
        if change.parameters:
            public = self._folders.is_public(ManagedFile.OPTIONS)
            extra["PARAMETERS"] = displayed(change.parameters, () if public else dict(change.parameters))
        record = Record(
            "configuration.changed" if written else "operation.unchanged",
            f"{change.module} {_DONE[change.action]}{'' if written else ' already'}",
            module=change.module,
            action=change.action,
            result=Result.CHANGED if written else Result.UNCHANGED,
            reason=change.reason,
            duration_usec=self._clock() - begun,
            extra=extra,
        ).by(caller)
        if error is not None:
            record = failed_record(record, error)
        self._audit.record(record)

    # --- everybody's files --------------------------------------------------------------------------------------------

    async def show(self) -> Sequence[ShownRule]:
        """Every rule in reading order, modules-load.d first, the kernel's command line last."""
        files, own = await asyncio.to_thread(self._look)
        self._index.refresh()
        return await judge(files, own, self._index, self._policy, self._facts.read())

    def _look(self) -> tuple[RuleFiles, dict[str, ManagedFileState]]:
        return self._folders.files(), {file: self._state(file) for file in ManagedFile}

    def _state(self, file: ManagedFile) -> ManagedFileState:
        try:
            text = self._folders.read(file)
        except OSError:
            return ManagedFileState(present=True)
        if text is None or not own_files.is_ours(text):
            return ManagedFileState(present=text is not None)
        if own_files.is_intact(text):
            return ManagedFileState(present=True, ours=True)
        return ManagedFileState(
            present=True, ours=True, edited=True, difference=own_files.edit_of(self._folders, file, text)
        )


def _about(rule: Rule) -> Evidence:
    """The evidence of a rule that overrules what is to be written."""
    return Evidence(file=rule.file, line=rule.line, rule=rule.told, rule_kind=rule.kind, hint=way_out(rule.file))


def _is_read_after(rule: Rule, file: ManagedFile) -> bool:
    """Files are read by their names, whatever folder they stand in; the kernel's command line comes last."""
    name, own = rule.file.rpartition("/")[2], file.rpartition("/")[2]
    return rule.file == COMMAND_LINE or name.encode() > own.encode()
