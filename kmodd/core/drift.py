# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where the machine differs from what is wanted of it, and what would make the two the same."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from kmodd.core.arguments import split_options
from kmodd.core.checks import ALWAYS_KNOWN, same_value
from kmodd.core.desired import DesiredState
from kmodd.core.policy import is_denial
from kmodd.errors import KmoddError
from kmodd.kernel.ports import LoadedModules, ModuleIndex
from kmodd.model import Operation, Rule, State, Verb
from kmodd.model.configuration import Drift, OwnFile, RuleAction, RuleChange
from kmodd.model.desired import Ban, Presence, Wish
from kmodd.names import ModuleName, kernel_arguments

APPLY = "kmodctl config apply"
WITHHELD = "(only root may see it)"


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
    """Compares the wishes in force with the machine; some tenths of a millisecond for each wish."""

    def __init__(
        self,
        desired: DesiredState,
        loaded: LoadedModules,
        index: ModuleIndex,
        *,
        autoloaded: Callable[[], Sequence[Rule]],
        active_version: Callable[[ModuleName], str],
        initramfs: Callable[[], Sequence[Drift]] = tuple,
    ) -> None:
        """`autoloaded` are the lines of modules-load.d in force, `active_version` is the store's (empty for none)."""
        self._desired = desired
        self._loaded = loaded
        self._index = index
        self._autoloaded = autoloaded
        self._active_version = active_version
        self._initramfs = initramfs

    def find(self) -> Difference:
        """Compare now."""
        found = Difference()
        wishes = [wish for wish in self._desired.wishes.values() if not self._desired.unmet(wish)]
        if wishes:
            self._index.refresh()
        # Read once for all wishes.
        autoloaded = self._autoloaded() if any(wish.autoload is not None for wish in wishes) else ()
        for wish in wishes:
            self._compare_rules(wish, autoloaded, found)
            self._compare_version(wish, found)
        live = {name for name, module in self._loaded.snapshot().items() if module.state is State.LIVE}
        for wish in _in_order(wishes):
            if wish.state is Presence.ABSENT:
                self._compare_absent(wish, found)
            elif wish.state is Presence.LOADED:
                self._compare_loaded(wish, live, found)
        found.rows += self._initramfs()
        return found

    # --- what is loaded -----------------------------------------------------------------------------------------------

    def _compare_absent(self, wish: Wish, found: Difference) -> None:
        module = self._loaded.read(wish.module)
        if module is not None:
            found.rows.append(Drift(wish.module, "presence", "absent", module.state, APPLY))
            found.operations.append(Operation(Verb.UNLOAD, wish.module))

    def _compare_loaded(self, wish: Wish, live: set[ModuleName], found: Difference) -> None:
        """`live` is what is live now or will be once the operations found so far are done."""
        if wish.module in live or self._index.is_builtin(wish.module):
            self._compare_parameters(wish, found)
            return
        if not all(name in live or self._index.is_builtin(name) for name in wish.after):
            return  # its time has not come
        module = self._loaded.read(wish.module)
        if module is not None:
            actual, hint = str(module.state), f"kmodctl why {wish.module}"
        elif not self._index.exists(wish.module):
            switched = any(name == wish.module for name, _ in found.versions)
            actual = "no such module"
            hint = APPLY if switched else f"install it, or mend {wish.file}, line {wish.line}"
        else:
            actual, hint = "absent", APPLY
        found.rows.append(Drift(wish.module, "presence", "loaded", actual, hint))
        found.operations.append(Operation(Verb.LOAD, wish.module, wish.live))
        live.add(wish.module)

    def _compare_parameters(self, wish: Wish, found: Difference) -> None:
        if not wish.live:
            return
        kinds = self._kinds(wish.module)
        values = {value.name.replace("-", "_"): value for value in self._loaded.parameters(wish.module, private=True)}
        reload = False
        for name, wanted in wish.live:
            value = values.get(name)
            if value is None and kinds and name not in kinds and name not in ALWAYS_KNOWN:
                hint = f"mend {wish.file}, line {wish.line}: kmodctl show {wish.module} lists its parameters"
                found.rows.append(
                    Drift(wish.module, "parameter", f"{name}={_told(wish, wanted)}", "no such parameter", hint)
                )
                found.writes.append(Write(wish.module, name, wanted))  # which fails, and says why
                continue
            # Many parameters have no file below /sys: nothing tells what they are.
            if value is None or value.value is None or same_value(kinds.get(name, ""), wanted, value.value):
                continue
            told, shown = (_told(wish, wanted), value.value) if value.public else (WITHHELD, WITHHELD)
            builtin = self._index.is_builtin(wish.module)
            hint = APPLY if value.writable else f"{APPLY} reloads it"
            if builtin:
                hint = "it is built in: its parameters stand on the kernel's command line"
            elif value.writable:
                found.writes.append(Write(wish.module, name, wanted))
            else:
                reload = True
            found.rows.append(Drift(wish.module, "parameter", f"{name}={told}", f"{name}={shown}", hint))
        if reload:
            found.writes = [write for write in found.writes if write.module != wish.module]
            found.operations.append(Operation(Verb.RELOAD, wish.module, wish.live))

    def _kinds(self, name: ModuleName) -> dict[str, str]:
        try:
            return {p.name.replace("-", "_"): p.type for p in self._index.info(name).parameters}
        except KmoddError:
            return {}  # its file is gone; the values are compared letter by letter

    # --- what the files say -------------------------------------------------------------------------------------------

    def _compare_rules(self, wish: Wish, autoloaded: Sequence[Rule], found: Difference) -> None:
        for drift, change in (*self._banned(wish), *self._options(wish), *self._autoload(wish, autoloaded)):
            found.rows.append(drift)
            if change is not None:
                found.changes.append(change)

    def _banned(self, wish: Wish) -> Iterator[tuple[Drift, RuleChange | None]]:
        rules = self._index.rules(wish.module)
        ours = {rule.kind for rule in rules if rule.file.endswith(OwnFile.BLACKLIST)}
        # Of several install lines the first one acts.
        install = next((rule for rule in rules if rule.kind == "install"), None)
        if install is not None and is_denial(install):
            actual = Ban.HARD
        else:
            actual = Ban.SOFT if any(rule.kind == "blacklist" for rule in rules) else Ban.NONE
        match wish.blacklist:
            case Ban.HARD if actual is not Ban.HARD:
                action = RuleAction.BLACKLIST_HARD
            case Ban.SOFT if actual is Ban.NONE or (actual is Ban.HARD and "install" in ours):
                action = RuleAction.BLACKLIST
            case Ban.NONE if ours:
                action = RuleAction.UNBLACKLIST
            case _:
                return
        yield (
            Drift(wish.module, "blacklist", wish.blacklist, actual, APPLY),
            RuleChange(action, wish.module, reason=wish.reason),
        )

    def _options(self, wish: Wish) -> Iterator[tuple[Drift, RuleChange | None]]:
        if wish.options is None:
            return
        rules = [rule for rule in self._index.rules(wish.module) if rule.kind == "options"]
        ours = [rule for rule in rules if rule.file.endswith(OwnFile.OPTIONS)]
        wanted = dict(wish.options)
        # What others set beside it is theirs.
        named = {key for rule in ours for key, _ in split_options(rule.value)}.union(wanted)
        said = [(rule, pair) for rule in (rules if wanted else ours) for pair in split_options(rule.value)]
        said = [(rule, pair) for rule, pair in said if pair[0] in named]
        actual = dict(pair for _, pair in said)
        kinds = self._kinds(wish.module)
        same = all(
            key in actual and same_value(kinds.get(key, ""), value, actual[key]) for key, value in wanted.items()
        )
        if same and named == wanted.keys():
            return
        public = all(rule.public for rule, _ in said)
        shown = kernel_arguments(actual) if public else WITHHELD
        row = Drift(wish.module, "options", _told(wish, kernel_arguments(wanted)), shown, APPLY)
        yield row, RuleChange(RuleAction.SET_OPTIONS, wish.module, wish.options, reason=wish.reason)

    def _autoload(self, wish: Wish, autoloaded: Sequence[Rule]) -> Iterator[tuple[Drift, RuleChange | None]]:
        if wish.autoload is None:
            return
        named = [rule for rule in autoloaded if rule.module == wish.module]
        if wish.autoload is bool(named):
            return
        if wish.autoload:
            change = RuleChange(RuleAction.ENABLE_AUTOLOAD, wish.module, reason=wish.reason)
            yield Drift(wish.module, "autoload", "loaded at boot", "not loaded at boot", APPLY), change
        for rule in named:
            row = Drift(wish.module, "autoload", "not loaded at boot", f"loaded at boot by {rule.file}", APPLY)
            if rule.file == OwnFile.AUTOLOAD:
                yield row, RuleChange(RuleAction.DISABLE_AUTOLOAD, wish.module, reason=wish.reason)
            else:
                # Somebody else's file, which kmodd does not write: told, and left to them.
                yield replace(row, hint=f"remove line {rule.line} of {rule.file}"), None

    def _compare_version(self, wish: Wish, found: Difference) -> None:
        if not wish.version:
            return
        active = self._active_version(wish.module)
        if active != wish.version:
            found.rows.append(Drift(wish.module, "store-version", wish.version, active or "none", APPLY))
            found.versions.append((wish.module, wish.version))


def _in_order(wishes: Sequence[Wish]) -> list[Wish]:
    """What has `after` comes after it; the files are known to have no loop."""
    by_name = {wish.module: wish for wish in wishes}
    ordered: dict[ModuleName, Wish] = {}
    for start in wishes:
        stack = [start]
        while stack:
            wish = stack[-1]
            first = [by_name[name] for name in wish.after if name in by_name and name not in ordered]
            if first:
                stack += first
            else:
                ordered[stack.pop().module] = wish
    return list(ordered.values())


def _told(wish: Wish, value: str) -> str:
    """What everyone may see of a value that stands in the wish's file."""
    return value if wish.public or not value else WITHHELD
