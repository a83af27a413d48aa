# SPDX-License-Identifier: LGPL-2.1-or-later
"""The desired state in effect: read from the files of modules.d, all or none, and kept when a file becomes invalid."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, Protocol

from kmodd.config.section import Section
from kmodd.config.settings import read_daemon_settings
from kmodd.core.events import Audit
from kmodd.errors import Conflict
from kmodd.model import Record
from kmodd.model.rules import BlacklistMode, DesiredModule, Parameters, Presence
from kmodd.model.settings import DaemonSettings, Document
from kmodd.names import (
    ModuleName,
    is_module_name,
    parse_module,
    parse_parameters,
    parse_reason,
    parse_version,
)
from kmodd.text import shown

Aliases = Callable[[], Iterable[str]]
"""The modaliases of every device that is there now; read when a condition asks for one, never otherwise."""

_COMPARISON = re.compile(r"\s*(>=|<=|==|!=|>|<)\s*([0-9]{1,5}(?:\.[0-9]{1,5}){0,3})\s*")
_PATTERN = re.compile(r"[A-Za-z0-9_.+~*?\[\]!-]{1,64}")
_LEADING = re.compile(r"[0-9]+(?:\.[0-9]+)*")
_COMPARED: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    ">=": lambda a, b: a >= b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    "<": lambda a, b: a < b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}


def is_kernel_condition(text: str) -> bool:
    """Comparisons separated by commas (`>=6.1, <7`), or one pattern over the release (`6.1.*-cloud-amd64`)."""
    if text.lstrip()[:1] in {"<", ">", "=", "!"}:
        return all(_COMPARISON.fullmatch(part) for part in text.split(","))
    return _PATTERN.fullmatch(text) is not None


def kernel_fits(condition: str, release: str) -> bool:
    """Tell whether a release fits; of it only the numbers at its start are compared, as far as the condition gives them.

    So `<=6.1` and `==6.1` hold for 6.1.0-18-amd64 too: who writes two numbers means the series.
    """
    if condition.lstrip()[:1] not in {"<", ">", "=", "!"}:
        return fnmatchcase(release, condition)
    return all(_compare(part, release) for part in condition.split(","))


def _compare(part: str, release: str) -> bool:
    match = _COMPARISON.fullmatch(part)
    leading = _LEADING.match(release)
    if match is None or leading is None:
        return False
    wanted = tuple(map(int, match[2].split(".")))
    numbers = tuple(map(int, leading[0].split(".")))
    padded = (numbers + (0,) * len(wanted))[: len(wanted)]
    return _COMPARED[match[1]](padded, wanted)


def unmet(entry: DesiredModule, release: str, aliases: Aliases) -> str:
    """Say which condition does not hold, as a clause; empty when all do."""
    if entry.kernel and not kernel_fits(entry.kernel, release):
        return f"kernel {release} is not {entry.kernel}"
    if entry.alias and not any(fnmatchcase(alias, entry.alias) for alias in aliases()):
        return f"no device matches the alias {entry.alias}"
    return ""


DESIRED_MODULES_MAX = 1024
_NAME_SHOWN = 64
"""Characters of a name that are repeated."""
KEYS = (
    "state",
    "parameters",
    "options",
    "blacklist",
    "autoload",
    "after",
    "unload-when-gone",
    "when",
    "version",
    "reason",
    "retry",
)
_CONDITIONS = ("alias", "kernel")
_ALIAS = re.compile(r"[A-Za-z0-9*?\[][A-Za-z0-9:._,+=()<>@*?\[\]!-]{0,479}")


def read_desired_modules(documents: Iterable[Document]) -> Mapping[ModuleName, DesiredModule]:
    """The desired state by module; Conflict names file, line and key of the first error."""
    desired_modules: dict[ModuleName, DesiredModule] = {}
    tables: dict[ModuleName, Section] = {}
    for document in documents:
        top = Section(document)
        top.only(("module",))
        modules = top.table("module")
        if modules is None:
            continue
        for key, table in modules.tables():
            if not is_module_name(key):
                modules.refuse(key, f"{shown(key, _NAME_SHOWN)} is not a module name")
            entry = _entry(parse_module(key), table)
            before = desired_modules.get(entry.module)
            if before is not None:
                where = f"{shown(before.file)}, line {before.line}"
                modules.refuse(key, f"{entry.module} is already described in {where}")
            if len(desired_modules) >= DESIRED_MODULES_MAX:
                modules.refuse(key, f"more than {DESIRED_MODULES_MAX} modules")
            desired_modules[entry.module], tables[entry.module] = entry, table
    _refuse_loops(desired_modules, tables)
    return desired_modules


def _entry(module: ModuleName, table: Section) -> DesiredModule:
    table.only(KEYS)
    state = Presence(table.text("state", "", one_of=(Presence.LOADED, Presence.ABSENT)))
    blacklist = BlacklistMode(
        table.text("blacklist", "", one_of=(BlacklistMode.SOFT, BlacklistMode.HARD, BlacklistMode.NONE))
    )
    after = tuple(dict.fromkeys(_modules(table, "after")))
    if module in after:
        table.refuse("after", f"{module} cannot come after itself")
    when = table.table("when")
    if when is not None:
        when.only(_CONDITIONS)
    entry = DesiredModule(
        module=module,
        file=table.file,
        line=table.line(),
        state=state,
        parameters=_parameters(table, "parameters"),
        options=_parameters(table, "options") if "options" in table else None,
        blacklist=blacklist,
        autoload=table.flag("autoload", default=False) if "autoload" in table else None,
        after=after,
        unload_when_gone=table.flag("unload-when-gone", default=False),
        alias=_matching(when, "alias", _ALIAS, "a pattern such as pci:v00008086d*") if when is not None else "",
        kernel=_kernel(when) if when is not None else "",
        version=table.parsed("version", lambda: parse_version(table.text("version"))) if "version" in table else "",
        reason=table.parsed("reason", lambda: parse_reason(table.text("reason", ""))),
        retry=table.flag("retry", default=True),
        public=table.public,
    )
    _refuse_contradictions(entry, table)
    return entry


def _refuse_contradictions(entry: DesiredModule, table: Section) -> None:
    if entry.state is not Presence.LOADED:
        for key in ("after", "parameters", "unload-when-gone", "retry"):
            if key in table:
                table.refuse(key, f'{key} says how to load {entry.module}, so it needs state = "loaded"')
    elif entry.blacklist is BlacklistMode.HARD:
        table.refuse(
            "blacklist", f'{entry.module} cannot be both desired and blacklisted: use "soft", or another state'
        )
    if entry.unload_when_gone and not entry.after:
        table.refuse("unload-when-gone", "unload-when-gone requires modules in after")
    if entry.blacklist is BlacklistMode.HARD and entry.autoload:
        table.refuse("autoload", f"{entry.module} is blacklisted, so it cannot be loaded at boot")


def _refuse_loops(desired_modules: Mapping[ModuleName, DesiredModule], tables: Mapping[ModuleName, Section]) -> None:
    """Follow `after` from every module; without recursion, so that a long chain is no fault."""
    sound: set[ModuleName] = set()
    for start in desired_modules:
        way: list[ModuleName] = []
        rest = [iter((start,))]
        while rest:
            name = next(rest[-1], None)
            if name is None:
                rest.pop()
                if way:
                    sound.add(way.pop())
            elif name in way:
                loop = [*way[way.index(name) :], name]
                tables[loop[0]].refuse("after", f"{' after '.join(loop)}: none of them would ever be loaded")
            elif name not in sound and name in desired_modules:
                way.append(name)
                rest.append(iter(desired_modules[name].after))


def _modules(table: Section, key: str) -> tuple[ModuleName, ...]:
    names = table.texts(key, ())
    for name in names:
        if not is_module_name(name):
            table.refuse(key, f"{shown(name, _NAME_SHOWN)} is not a module name")
    return tuple(parse_module(name) for name in names)


def _parameters(table: Section, key: str) -> Parameters:
    inner = table.table(key)
    if inner is None:
        return ()
    texts = {name: _spelt(inner, name) for name in inner.names}
    parsed = table.parsed(key, lambda: parse_parameters(texts))
    return tuple(parsed.items())


def _spelt(table: Section, name: str) -> str:
    """A value as the kernel reads it: `true` as 1, a list with commas."""
    value = table.value(name)
    parts = value if isinstance(value, list) else [value]
    if not all(isinstance(part, str | int) for part in parts) or (isinstance(value, list) and not value):
        table.refuse(name, f"{shown(name, _NAME_SHOWN)} must be a string, an integer, true, false, or a list of these")
    return ",".join(map(_word, parts))


def _word(value: Any) -> str:
    if isinstance(value, int):
        # Python refuses to spell numbers of thousands of digits in decimal; no parameter takes one.
        return str(int(value)) if abs(value) < 1 << 128 else hex(value)
    return str(value)


def _matching(table: Section, key: str, pattern: re.Pattern[str], wanted: str) -> str:
    text = table.text(key, "")
    if key in table and pattern.fullmatch(text) is None:
        table.refuse(key, f"{key} must be {wanted}")
    return text


def _kernel(table: Section) -> str:
    text = table.text("kernel", "")
    if "kernel" in table and not is_kernel_condition(text):
        table.refuse("kernel", 'kernel must be a comparison such as ">=6.1, <7", or a pattern such as "6.1.*-amd64"')
    return text


class Documents(Protocol):
    """A settings file with its drop-ins, or a folder of files."""

    def changed(self) -> bool:
        """Something is different from what was last read; cheap."""

    def read(self) -> Sequence[Document]:
        """All documents in effect; Conflict for one that cannot be read or is not valid TOML."""


class DesiredState:
    """What the administrator's files say, as of the last time all of them were right."""

    def __init__(
        self,
        modules: Documents,
        settings: Documents,
        *,
        release: str,
        aliases: Aliases,
        audit: Audit,
        on_reload: Callable[[], None] = lambda: None,
        modules_of: Callable[[ModuleName], Sequence[ModuleName]] = lambda name: (),
    ) -> None:
        """`modules` is modules.d, `settings` the daemon's own kmodd.toml; `aliases` are those of the devices there are.

        `on_reload` is called when files were read again and are valid, by any trigger. `modules_of` returns the modules
        that an alias stands for, and none for the name of a module.
        """
        self._on_reload = on_reload
        self._modules_of = modules_of
        self._modules = modules
        self._settings = settings
        self._release = release
        self._aliases = aliases
        self._present: tuple[str, ...] | None = None
        """The aliases as last read; None when a device came or went since."""
        self._audit = audit
        self._read: Mapping[ModuleName, DesiredModule] = {}
        """By the names in the files."""
        self.desired_modules: Mapping[ModuleName, DesiredModule] = {}
        """The desired state in effect, by module, in the order of the files."""
        self._fault: Conflict | None = None
        self.daemon_settings = DaemonSettings()
        """The daemon's own settings in effect."""

    def aliases(self) -> Iterator[tuple[DesiredModule, tuple[ModuleName, ...]]]:
        """Tables that name an alias, as written, with the modules it stands for."""
        for name, entry in self._read.items():
            if modules := tuple(self._modules_of(name)):
                yield entry, modules

    def find_modules(self) -> None:
        """See which modules the names in the files stand for; a changed index or alias line may change that.

        A table for an alias of one module is one for that module, unless another table names it.
        """
        desired_modules: dict[ModuleName, DesiredModule] = {}
        for name, entry in self._read.items():
            module = self._module(name)
            if module != name and (module in self._read or module in desired_modules):
                continue
            after = tuple(dict.fromkeys(each for each in map(self._module, entry.after) if each != module))
            written = None if module == name else name
            desired_modules[module] = replace(entry, module=module, after=after, written=written)
        self.desired_modules = desired_modules

    def _module(self, name: ModuleName) -> ModuleName:
        modules = self._modules_of(name)
        return modules[0] if len(modules) == 1 else name

    @property
    def fault(self) -> Conflict | None:
        """Why the files as they are now do not count; None when they do."""
        return self._fault

    def is_for_this_kernel(self, entry: DesiredModule) -> bool:
        """Its condition about the kernel can hold before the next boot."""
        return not entry.kernel or kernel_fits(entry.kernel, self._release)

    def unmet(self, entry: DesiredModule) -> str:
        """Why a table does not apply on this system, as a clause; empty if it does."""
        return unmet(entry, self._release, self._devices)

    def devices_changed(self) -> None:
        """A device came or went: the next condition that asks for one has them read again."""
        self._present = None

    def _devices(self) -> tuple[str, ...]:
        # The kernel tells of a device after /sys has changed, so what is read before its event is never older than that.
        if self._present is None:
            self._present = tuple(self._aliases())
        return self._present

    def reload(self) -> None:
        """Read all files again; Conflict for the first that is bad, and everything stays as it was."""
        try:
            daemon_settings = read_daemon_settings(self._settings.read())
            desired_modules = read_desired_modules(self._modules.read())
        except Conflict as error:
            former, self._fault = self._fault, error
            if former is None or former.message != error.message:
                self._audit.record(
                    Record(
                        "configuration.refused",
                        f"{error.message}; the previous settings stay in effect",
                        error=error.name(),
                        hint=error.evidence.hint,
                        priority=3,
                        extra={"FILE": error.evidence.file, "LINE": str(error.evidence.line)},
                    )
                )
            raise
        self._fault = None
        self.daemon_settings, self._read = daemon_settings, desired_modules
        self.find_modules()
        self._on_reload()

    def refresh(self) -> bool:
        """Read the files again if one changed; True when the settings in effect did. An invalid file is reported and changes nothing."""
        if not (self._modules.changed() or self._settings.changed()):
            return False
        before = self.daemon_settings, self.desired_modules
        try:
            self.reload()
        except Conflict:
            return False  # recorded, and a finding of health
        return before != (self.daemon_settings, self.desired_modules)
