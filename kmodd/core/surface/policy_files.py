# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads the policy for the attack surface from the files of surface.d, all of them or none."""

from collections.abc import Iterable, Sequence
from datetime import date, datetime

from kmodd.config.section import Section
from kmodd.core.desired.state import is_kernel_condition
from kmodd.model.settings import Document
from kmodd.model.surface import Reach
from kmodd.model.surface_policy import Mode, PolicyRule, SurfacePolicy
from kmodd.names import ModuleName, is_module_name, parse_module, parse_reason
from kmodd.suggestions import near
from kmodd.text import shown

RULES_MAX = 8192
"""Tables about modules, over all files."""
SCOPES = (Reach.UNPRIVILEGED, Reach.USERNS, Reach.DEVICE, Reach.HARDWARE)
_KEYS = ("surface", "allow", "block", "profile")
_NAME_SHOWN = 64
_IDS_MAX = 16


def read_policy(documents: Iterable[Document]) -> SurfacePolicy:
    """The policy; Conflict names file, line and key of the first error."""
    reader = _Reader()
    for document in documents:
        reader.read(Section(document))
    return reader.policy()


class _Reader:
    def __init__(self) -> None:
        self._surface: Section | None = None
        self._allow: dict[ModuleName, PolicyRule] = {}
        self._block: dict[ModuleName, PolicyRule] = {}
        self._profiles: dict[str, dict[ModuleName, PolicyRule]] = {}
        self._tables = 0

    def read(self, top: Section) -> None:
        top.only(_KEYS)
        surface = top.table("surface")
        if surface is not None:
            if self._surface is not None:
                before = self._surface
                surface.refuse("", f"surface is already described in {shown(before.file)}, line {before.line()}")
            self._surface = surface
        self._rules(top.table("allow"), self._allow, ("reason", "until", "when"))
        self._rules(top.table("block"), self._block, ("reason", "ids", "until", "when"))
        profiles = top.table("profile")
        for name, table in profiles.tables() if profiles is not None else ():
            table.only(("title", "block"))
            table.text("title", "")
            if name in self._profiles:
                table.refuse("", f"the profile {shown(name, _NAME_SHOWN)} is already described in another file")
            rules = self._profiles[name] = {}
            self._rules(table.table("block"), rules, ("reason", "ids", "when"), profile=name)

    def policy(self) -> SurfacePolicy:
        """What all files together say."""
        table = self._surface
        if table is None:
            return SurfacePolicy(allow=self._allow, block=self._block)
        table.only(("mode", "scope", "profile"))
        default = SurfacePolicy()
        scope = table.texts("scope", default.scope)
        for text in scope:
            if text not in SCOPES:
                table.refuse("scope", f"scope must be a list of {', '.join(SCOPES)}{_meant(text, SCOPES)}")
        profiles = tuple(dict.fromkeys(table.texts("profile", ())))
        for name in profiles:
            if name not in self._profiles:
                there = ", ".join(self._profiles) or "there is none"
                table.refuse(
                    "profile", f"no profile {shown(name, _NAME_SHOWN)}{_meant(name, self._profiles) or f'; {there}'}"
                )
        profiled: dict[ModuleName, PolicyRule] = {}
        for name in profiles:
            for module, rule in self._profiles[name].items():
                profiled.setdefault(module, rule)
        return SurfacePolicy(
            mode=Mode(table.text("mode", default.mode, one_of=Mode)),
            scope=tuple(Reach(text) for text in dict.fromkeys(scope)),
            profiles=profiles,
            allow=self._allow,
            block=self._block,
            profiled=profiled,
        )

    def _rules(
        self, tables: Section | None, rules: dict[ModuleName, PolicyRule], keys: Sequence[str], *, profile: str = ""
    ) -> None:
        if tables is None:
            return
        for key, table in tables.tables():
            if not is_module_name(key):
                tables.refuse(key, f"{shown(key, _NAME_SHOWN)} is not a module name")
            self._tables += 1
            if self._tables > RULES_MAX:
                tables.refuse(key, f"more than {RULES_MAX} modules")
            rule = _rule(key, table, keys, profile)
            before = rules.get(rule.module)
            if before is not None:
                tables.refuse(key, f"{rule.module} is already described in {shown(before.file)}, line {before.line}")
            rules[rule.module] = rule


def _rule(key: str, table: Section, keys: Sequence[str], profile: str) -> PolicyRule:
    table.only(keys)
    when = table.table("when")
    kernel = ""
    if when is not None:
        when.only(("kernel",))
        kernel = when.text("kernel")
        if not is_kernel_condition(kernel):
            when.refuse("kernel", 'kernel must be a comparison such as ">=6.1, <7", or a pattern such as "6.1.*-amd64"')
    return PolicyRule(
        module=parse_module(key),
        file=table.file,
        line=table.line(),
        written=key,
        reason=table.parsed("reason", lambda: parse_reason(table.text("reason", ""))),
        ids=table.texts("ids", (), longest=_IDS_MAX),
        until=_date(table) if "until" in table else None,
        kernel=kernel,
        profile=profile,
    )


def _date(table: Section) -> date:
    value = table.value("until")
    if not isinstance(value, date) or isinstance(value, datetime):
        table.refuse("until", "until must be a date such as 2027-03-31, without quotes")
    return value


def _meant(text: str, choices: Iterable[str]) -> str:
    close = near(text, tuple(choices))
    return f"; did you mean {close[0]}?" if close else ""
