# SPDX-License-Identifier: LGPL-2.1-or-later
"""The rules that kmodd's own files hold about one module, and how to bring them to a desired state."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Mapping

from .session import canonical

if TYPE_CHECKING:
    from kmodd.client.configuration import Configuration
    from kmodd.model.rules import ShownRule

SOFT, HARD, NONE = "soft", "hard", "none"
VALUE_MAX = 4096
"""Characters after which the service cuts the value of a rule."""


@dataclass(frozen=True)
class OwnRules:
    """What kmodd's three files say about a module."""

    autoload: bool = False
    options: Mapping[str, str] = field(default_factory=dict)
    blacklist: str = NONE

    def shown(self) -> dict[str, Any]:
        """The rules as values of a diff or a result."""
        return {"autoload": self.autoload, "options": dict(self.options), "blacklist": self.blacklist}


async def read_rules(configuration: Configuration, name: str, *, exact: bool) -> OwnRules:
    """Read what kmodd's own files say about the module now; `exact` refuses options that are shown only in part."""
    from kmodd.model.arguments import encoded, key, read

    rules = OwnRules()
    kinds = set()
    for shown in await configuration.show():
        if not shown.ours or shown.rule.module != canonical(name):
            continue
        kinds.add(shown.rule.kind)
        if shown.rule.kind == "autoload":
            rules = replace(rules, autoload=True)
        elif shown.rule.kind == "options":
            if exact and not _is_whole(shown):
                raise _cut(name, shown.rule.file)
            words = read(encoded(shown.rule.value))
            rules = replace(rules, options={**rules.options, **{key(word.name): word.value or "" for word in words}})
    if "blacklist" in kinds:
        rules = replace(rules, blacklist=HARD if "install" in kinds else SOFT)
    return rules


def _is_whole(shown: ShownRule) -> bool:
    r"""Whether the value is the file's own: not withheld, not cut, and without `\xe4` for what is not ASCII."""
    return shown.public and len(shown.rule.value) < VALUE_MAX and "\\x" not in shown.rule.value


def _cut(name: str, file: str) -> Exception:
    from kmodd.errors import Evidence, NotPermitted

    return NotPermitted(
        f"the options of {name} in {file} cannot be read in full",
        module=canonical(name),
        evidence=Evidence(file=file, hint=f"kmodctl config options {name} --off removes them; chmod o+r {file}"),
    )


async def bring_rules(
    configuration: Configuration, name: str, now: OwnRules, desired: OwnRules, *, reason: str, dry_run: bool
) -> None:
    """Change what differs. As a dry run everything is checked, and nothing is written."""
    if desired.blacklist == NONE != now.blacklist:
        await configuration.set_blacklisted(name, blacklisted=False, reason=reason, dry_run=dry_run)
    if desired.options != now.options:
        await configuration.set_options(name, desired.options, reason=reason, dry_run=dry_run)
    if desired.autoload != now.autoload:
        await configuration.set_autoload(name, enabled=desired.autoload, reason=reason, dry_run=dry_run)
    if desired.blacklist not in (NONE, now.blacklist):
        await configuration.set_blacklisted(name, hard=desired.blacklist == HARD, reason=reason, dry_run=dry_run)
