# SPDX-License-Identifier: LGPL-2.1-or-later
"""The differences between the desired and the actual state, and the changes that resolve them."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import field, replace

from kmodd.core.desired.state import DesiredState
from kmodd.core.operations.live_values import GivenValues, LiveValues
from kmodd.core.planning.parameters import ALWAYS_KNOWN, read_options, same_setting
from kmodd.core.planning.policy import Policy
from kmodd.errors import KmoddError
from kmodd.fast_dataclass import dataclass
from kmodd.kernel.ports import LoadedModules, ModuleIndex
from kmodd.model import Operation, Rule, State, Verb
from kmodd.model.arguments import displayed
from kmodd.model.rules import BlacklistMode, DesiredModule, Drift, ManagedFile, Presence, RuleAction, RuleChange
from kmodd.names import ModuleName

APPLY = "kmodctl config apply"
WITHHELD = "(visible to root only)"
_NOT_GIVEN = "not set when it was loaded"


@dataclass(frozen=True, slots=True)
class Write:
    """A live parameter to be set."""

    module: ModuleName
    parameter: str
    value: str


@dataclass(slots=True)
class Difference:
    """Everything that differs, as rows for people and as things to do."""

    rows: list[Drift] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    changes: list[RuleChange] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)
    versions: list[tuple[ModuleName, str]] = field(default_factory=list)


class Comparison:
    """Compares the desired state in effect with the actual one; some tenths of a millisecond per module."""

    def __init__(
        self,
        desired: DesiredState,
        loaded: LoadedModules,
        index: ModuleIndex,
        values: LiveValues,
        *,
        autoloaded: Callable[[], Sequence[Rule]],
        active_version: Callable[[ModuleName], str],
        given: GivenValues | None = None,
        initramfs: Callable[[], Sequence[Drift]] = tuple,
        appeared: Callable[[ModuleName], bool] = lambda name: False,
    ) -> None:
        """`appeared` tells whether a module was loaded while the daemon runs: what it was given is known then.

        `autoloaded` are the lines of modules-load.d in effect, `active_version` is the store's (empty for none)."""
        self._desired = desired
        self._loaded = loaded
        self._index = index
        self._policy = Policy(index)
        self._values = values
        self._autoloaded = autoloaded
        self._active_version = active_version
        self._given = GivenValues() if given is None else given
        self._initramfs = initramfs
        self._appeared = appeared

    async def look(self) -> None:
        """Read the live parameters with a desired value, so that `find` compares current values."""
        await self._values.refresh(self._wanted_live(), private=True)

    def reading(self) -> asyncio.Task[None] | None:
        """The same as a task; None where all of them have just been read."""
        if all(self._values.is_fresh(name, private=True) for name in self._wanted_live()):
            return None
        return asyncio.get_running_loop().create_task(self.look())

    def _wanted_live(self) -> list[ModuleName]:
        names = [
            entry.module
            for entry in self._desired.desired_modules.values()
            if entry.state is Presence.LOADED and entry.live and not self._desired.unmet(entry)
        ]
        # By what the kernel calls it, where its file was renamed.
        return [name if self._loaded.read(name) is not None else self._index.holds(name) for name in names]

    def find(self) -> Difference:
        """Compare now; live parameters as they were read last, and not at all those that never were."""
        difference = Difference()
        desired_modules = [entry for entry in self._desired.desired_modules.values() if not self._desired.unmet(entry)]
        if desired_modules:
            self._index.refresh()
        # Read once for all modules.
        autoloaded = self._autoloaded() if any(entry.autoload is not None for entry in desired_modules) else ()
        for entry in desired_modules:
            self._compare_rules(entry, autoloaded, difference)
            self._compare_version(entry, difference)
        live = {name for name, module in self._loaded.snapshot().items() if module.state is State.LIVE}
        for entry in _in_order(desired_modules):
            if entry.state is Presence.ABSENT:
                self._compare_absent(entry, difference)
            elif entry.state is Presence.LOADED:
                self._compare_loaded(entry, live, difference)
        difference.rows += self._initramfs()
        return difference

    # --- what is loaded -----------------------------------------------------------------------------------------------

    def _compare_absent(self, entry: DesiredModule, difference: Difference) -> None:
        module = self._loaded.read(entry.module) or self._loaded.read(self._index.holds(entry.module))
        if module is not None:
            difference.rows.append(Drift(entry.module, "presence", "absent", module.state, APPLY))
            difference.operations.append(Operation(Verb.UNLOAD, entry.module, itself=True))

    def _compare_loaded(self, entry: DesiredModule, live: set[ModuleName], difference: Difference) -> None:
        """`live` is what is live now or will be once the operations planned so far are executed."""
        if entry.module in live or self._index.is_builtin(entry.module):
            self._compare_parameters(entry, entry.module, difference)
            return
        held = self._index.holds(entry.module)  # another name where the file was renamed
        if held in live:
            self._compare_parameters(entry, held, difference)
            return
        if not all(name in live or self._index.is_builtin(name) for name in entry.after):
            return  # its time has not come
        module = self._loaded.read(held)
        aliased = () if self._index.exists(entry.module) else self._index.resolve(entry.module)
        if module is not None:
            actual, hint = str(module.state), f"kmodctl why {entry.module}"
        elif aliased:
            actual = f"an alias of {' and '.join(aliased)}"
            hint = f"write the modules' names in {entry.file}, line {entry.line}"
        elif not self._index.exists(entry.module):
            switched = any(name == entry.module for name, _ in difference.versions)
            actual = "no such module"
            hint = APPLY if switched else f"install it, or fix {entry.file}, line {entry.line}"
        else:
            actual, hint = "absent", APPLY
        difference.rows.append(Drift(entry.module, "presence", "loaded", actual, hint))
        difference.operations.append(Operation(Verb.LOAD, entry.module, entry.live, itself=True))
        live.add(entry.module)

    def _compare_parameters(self, entry: DesiredModule, module: ModuleName, difference: Difference) -> None:
        """`module` is the kernel's name for it."""
        if not entry.live:
            return
        kinds = self._kinds(entry.module)
        values = {value.name.replace("-", "_"): value for value in self._values.known(module, private=True)}
        reload = False
        for name, wanted in entry.live:
            value = values.get(name)
            if value is None and kinds and name not in kinds and name not in ALWAYS_KNOWN:
                hint = f"fix {entry.file}, line {entry.line}: kmodctl show {entry.module} lists its parameters"
                difference.rows.append(
                    Drift(entry.module, "parameter", f"{name}={_told(entry, wanted)}", "no such parameter", hint)
                )
                difference.writes.append(Write(entry.module, name, wanted))  # which fails, and says why
                continue
            # Many parameters have no file below /sys: what they are is known only from what the module was given.
            if value is None or value.value is None:
                if self._is_lost(module, entry.module, name, kinds.get(name, ""), wanted):
                    row = Drift(
                        module, "parameter", f"{name}={_told(entry, wanted)}", _NOT_GIVEN, f"{APPLY} reloads it"
                    )
                    difference.rows.append(row)
                    reload = True
                continue
            if self._given.is_met(module, name, kinds.get(name, ""), wanted, value.value):
                continue
            desired, shown = (_told(entry, wanted), value.value) if value.public else (WITHHELD, WITHHELD)
            builtin = self._index.is_builtin(entry.module)
            hint = APPLY if value.writable else f"{APPLY} reloads it"
            if builtin:
                hint = "it is built in: set its parameters on the kernel command line"
            elif value.writable:
                difference.writes.append(Write(module, name, wanted))
            else:
                reload = True
            difference.rows.append(Drift(entry.module, "parameter", f"{name}={desired}", f"{name}={shown}", hint))
        if reload:
            difference.writes = [write for write in difference.writes if write.module != module]
            difference.operations.append(Operation(Verb.RELOAD, entry.module, entry.live, itself=True))

    def _is_lost(self, module: ModuleName, file: ModuleName, name: str, kind: str, wanted: str) -> bool:
        """Whether the module was certainly loaded without this value, by a program unaware of the desired state."""
        if not self._appeared(module) or self._given.is_met(module, name, kind, wanted, None):
            return False
        options = read_options([rule for rule in self._index.rules(file) if rule.kind == "options"])
        last = {each.name: each.value for each in options.assignments}
        return name not in last or not same_setting(kind, wanted, last[name])

    def _kinds(self, name: ModuleName) -> dict[str, str]:
        try:
            return {p.name.replace("-", "_"): p.type for p in self._index.info(name).parameters}
        except KmoddError:
            return {}  # its file is gone; the values are compared letter by letter

    # --- what the files say -------------------------------------------------------------------------------------------

    def _compare_rules(self, entry: DesiredModule, autoloaded: Sequence[Rule], difference: Difference) -> None:
        for drift, change in (*self._banned(entry), *self._options(entry), *self._autoload(entry, autoloaded)):
            difference.rows.append(drift)
            if change is not None:
                difference.changes.append(change)

    def _banned(self, entry: DesiredModule) -> Iterator[tuple[Drift, RuleChange | None]]:
        rules = self._index.rules(entry.module)
        ours = {rule.kind for rule in rules if rule.file.endswith(ManagedFile.BLACKLIST)}
        if self._policy.keeps_out(entry.module):
            actual = BlacklistMode.HARD
        else:
            actual = BlacklistMode.SOFT if any(rule.kind == "blacklist" for rule in rules) else BlacklistMode.NONE
        match entry.blacklist:
            case BlacklistMode.HARD if actual is not BlacklistMode.HARD:
                action = RuleAction.BLACKLIST_HARD
            case BlacklistMode.SOFT if actual is BlacklistMode.NONE or (
                actual is BlacklistMode.HARD and "install" in ours
            ):
                action = RuleAction.BLACKLIST
            case BlacklistMode.NONE if ours:
                action = RuleAction.UNBLACKLIST
            case _:
                return
        yield (
            Drift(entry.module, "blacklist", entry.blacklist, actual, APPLY),
            RuleChange(action, entry.module, reason=entry.reason),
        )

    def _options(self, entry: DesiredModule) -> Iterator[tuple[Drift, RuleChange | None]]:
        if entry.options is None:
            return
        rules = [rule for rule in self._index.rules(entry.module) if rule.kind == "options"]
        ours = [rule for rule in rules if rule.file.endswith(ManagedFile.OPTIONS)]
        wanted = dict(entry.options)
        # What others set beside it is theirs.
        named = {each.name for each in read_options(ours).assignments}.union(wanted)
        assignments = [each for each in read_options(rules if wanted else ours).assignments if each.name in named]
        actual = {each.name: each.value for each in assignments}
        kinds = self._kinds(entry.module)
        same = all(
            name in actual and same_setting(kinds.get(name, ""), value, actual[name]) for name, value in wanted.items()
        )
        if same and named == wanted.keys():
            return
        shown = displayed(actual.items()) if all(each.rule.public for each in assignments) else WITHHELD
        row = Drift(entry.module, "options", _told(entry, displayed(wanted.items())), shown, APPLY)
        yield row, RuleChange(RuleAction.SET_OPTIONS, entry.module, entry.options, reason=entry.reason)

    def _autoload(self, entry: DesiredModule, autoloaded: Sequence[Rule]) -> Iterator[tuple[Drift, RuleChange | None]]:
        if entry.autoload is None:
            return
        named = [rule for rule in autoloaded if self._names(rule, entry.module)]
        if entry.autoload is bool(named):
            return
        if entry.autoload:
            change = RuleChange(RuleAction.ENABLE_AUTOLOAD, entry.module, reason=entry.reason)
            yield Drift(entry.module, "autoload", "loaded at boot", "not loaded at boot", APPLY), change
        for rule in named:
            row = Drift(entry.module, "autoload", "not loaded at boot", f"loaded at boot by {rule.file}", APPLY)
            if rule.file == ManagedFile.AUTOLOAD:
                yield row, RuleChange(RuleAction.DISABLE_AUTOLOAD, entry.module, reason=entry.reason)
            else:
                # Another program's file, which kmodd does not write: reported, and left to the administrator.
                yield replace(row, hint=f"remove line {rule.line} of {rule.file}"), None

    def _names(self, rule: Rule, module: ModuleName) -> bool:
        """Tell whether a line of modules-load.d names the module, or an alias of it."""
        if rule.module == module:
            return True
        name = ModuleName(rule.module)
        return not self._index.exists(name) and module in self._index.resolve(name)

    def _compare_version(self, entry: DesiredModule, difference: Difference) -> None:
        if not entry.version:
            return
        active = self._active_version(entry.module)
        if active != entry.version:
            difference.rows.append(Drift(entry.module, "store-version", entry.version, active or "none", APPLY))
            difference.versions.append((entry.module, entry.version))


def _in_order(desired_modules: Sequence[DesiredModule]) -> list[DesiredModule]:
    """What has `after` comes after it; the files are known to have no loop."""
    by_name = {entry.module: entry for entry in desired_modules}
    ordered: dict[ModuleName, DesiredModule] = {}
    for start in desired_modules:
        stack = [start]
        while stack:
            entry = stack[-1]
            # Two names of one module may close a loop that the files do not have.
            first = [
                by_name[name]
                for name in entry.after
                if name in by_name and name not in ordered and by_name[name] not in stack
            ]
            if first:
                stack += first
            else:
                ordered[stack.pop().module] = entry
    return list(ordered.values())


def _told(entry: DesiredModule, value: str) -> str:
    """The public form of a value in the desired state."""
    return value if entry.public or not value else WITHHELD
