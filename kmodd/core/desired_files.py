# SPDX-License-Identifier: LGPL-2.1-or-later
"""From the files of modules.d to wishes. All of them are right, or none of them counts."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from kmodd.core.conditions import is_kernel_condition
from kmodd.core.settings_table import Table, printable
from kmodd.model.desired import Ban, Parameters, Presence, Wish
from kmodd.model.document import Document
from kmodd.names import (
    ARRAY_MAX,
    ModuleName,
    is_module_name,
    parse_module,
    parse_parameters,
    parse_reason,
    parse_version,
)

WISHES_MAX = 1024
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


def read_wishes(documents: Iterable[Document]) -> Mapping[ModuleName, Wish]:
    """Every wish by its module; Conflict names file, line and key of the first that is wrong."""
    wishes: dict[ModuleName, Wish] = {}
    tables: dict[ModuleName, Table] = {}
    for document in documents:
        top = Table(document)
        top.only(("module",))
        modules = top.table("module")
        if modules is None:
            continue
        for key, table in modules.tables():
            if not is_module_name(key):
                modules.refuse(key, f"{printable(key)} is no name of a module")
            wish = _wish(parse_module(key), table)
            before = wishes.get(wish.module)
            if before is not None:
                where = f"{printable(before.file, 256)}, line {before.line}"
                modules.refuse(key, f"{wish.module} is described already in {where}")
            if len(wishes) >= WISHES_MAX:
                modules.refuse(key, f"there are more than {WISHES_MAX} modules")
            wishes[wish.module], tables[wish.module] = wish, table
    _refuse_loops(wishes, tables)
    return wishes


def _wish(module: ModuleName, table: Table) -> Wish:
    table.only(KEYS)
    state = Presence(table.choice("state", (Presence.LOADED, Presence.ABSENT), ""))
    blacklist = Ban(table.choice("blacklist", (Ban.SOFT, Ban.HARD, Ban.NONE), ""))
    after = tuple(dict.fromkeys(_modules(table, "after")))
    if module in after:
        table.refuse("after", f"{module} cannot come after itself")
    when = table.table("when")
    if when is not None:
        when.only(_CONDITIONS)
    wish = Wish(
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
        reason=table.parsed("reason", lambda: parse_reason(table.text("reason"))),
        retry=table.flag("retry", default=True),
        public=table.public,
    )
    _refuse_contradictions(wish, table)
    return wish


def _refuse_contradictions(wish: Wish, table: Table) -> None:
    if wish.state is not Presence.LOADED:
        for key in ("after", "parameters", "unload-when-gone", "retry"):
            if key in table:
                table.refuse(key, f'{key} says how to load {wish.module}, so it needs state = "loaded"')
    elif wish.blacklist is Ban.HARD:
        table.refuse("blacklist", f'{wish.module} cannot be wanted and be kept out: take "soft", or another state')
    if wish.unload_when_gone and not wish.after:
        table.refuse("unload-when-gone", "unload-when-gone is about the modules in after, and there are none")
    if wish.blacklist is Ban.HARD and wish.autoload:
        table.refuse("autoload", f"{wish.module} is kept out, so it cannot be loaded at boot")


def _refuse_loops(wishes: Mapping[ModuleName, Wish], tables: Mapping[ModuleName, Table]) -> None:
    """Follow `after` from every module; without recursion, so that a long chain is no fault."""
    sound: set[ModuleName] = set()
    for start in wishes:
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
            elif name not in sound and name in wishes:
                way.append(name)
                rest.append(iter(wishes[name].after))


def _modules(table: Table, key: str) -> tuple[ModuleName, ...]:
    names = table.texts(key)
    if len(names) > ARRAY_MAX:
        table.refuse(key, f"{key} has at most {ARRAY_MAX} modules")
    for name in names:
        if not is_module_name(name):
            table.refuse(key, f"{printable(name)} is no name of a module")
    return tuple(parse_module(name) for name in names)


def _parameters(table: Table, key: str) -> Parameters:
    inner = table.table(key)
    if inner is None:
        return ()
    texts = {name: _spelt(inner, name) for name in inner.names}
    parsed: dict[str, str] = table.parsed(key, lambda: parse_parameters(texts))
    return tuple(parsed.items())


def _spelt(table: Table, name: str) -> str:
    """A value as the kernel reads it: `true` as 1, a list with commas."""
    value = table.value(name)
    parts = value if isinstance(value, list) else [value]
    if not all(isinstance(part, str | int) for part in parts) or (isinstance(value, list) and not value):
        table.refuse(name, f"{printable(name)} is a text, a whole number, true, false, or a list of these")
    return ",".join(map(_word, parts))


def _word(value: Any) -> str:
    if isinstance(value, int):
        # Python refuses to spell numbers of thousands of digits in decimal; no parameter takes one.
        return str(int(value)) if abs(value) < 1 << 128 else hex(value)
    return str(value)


def _matching(table: Table, key: str, pattern: re.Pattern[str], wanted: str) -> str:
    text = table.text(key)
    if key in table and pattern.fullmatch(text) is None:
        table.refuse(key, f"{key} is {wanted}")
    return text


def _kernel(table: Table) -> str:
    text = table.text("kernel")
    if "kernel" in table and not is_kernel_condition(text):
        table.refuse("kernel", 'kernel is a comparison such as ">=6.1, <7", or a pattern such as "6.1.*-amd64"')
    return text
