# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads notify.toml, its drop-ins, and what was added with kmodctl, as one configuration."""

from collections.abc import Sequence
from pathlib import Path
from tomllib import TOMLDecodeError, loads
from typing import TYPE_CHECKING

from kmodd.errors import InvalidArgs
from kmodd.notifier.configuration import (
    ENDPOINTS_MAX,
    Configuration,
    Email,
    Endpoint,
    Webhook,
    parse_email,
    parse_name,
    parse_networks,
    parse_rule,
    parse_smtp,
    parse_webhook,
)
from kmodd.notifier.section import ConfigurationError, Section
from kmodd.notifier.toml_lines import key_lines

if TYPE_CHECKING:
    from kmodd.notifier.rules import Rule

FILE_MAX = 1 << 18
RULES_MAX = 256


def files(main: Path, *more: Path) -> list[Path]:
    """The files in force, in reading order: the main one, its drop-ins by name, then others; those that are there."""
    drop_ins = main.with_name(main.name + ".d")
    found = sorted(path for path in drop_ins.glob("*.toml") if not path.name.startswith("."))
    return [path for path in (main, *found, *more) if path.exists()]


def read_section(path: Path) -> Section:
    """One file as its outermost table."""
    try:
        data = path.read_bytes()
        if len(data) > FILE_MAX:
            raise ConfigurationError(f"{path}, line 1: the file is larger than {FILE_MAX} bytes")
        text = data.decode().replace("\r\n", "\n")
    except OSError as error:
        raise ConfigurationError(f"{path}, line 1: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigurationError(f"{path}, line {line}: this is no UTF-8") from None
    try:
        return Section(loads(text), str(path), key_lines(text))
    except TOMLDecodeError as error:
        what, _, where = str(error).partition(" (at ")
        line = int(where.split()[1].rstrip(",")) if where.startswith("line") else text.count("\n") + 1
        raise ConfigurationError(f"{path}, line {line}: this is no TOML: {what}") from None
    except RecursionError:
        raise ConfigurationError(f"{path}, line 1: nested too deep") from None


def read_configuration(paths: Sequence[Path]) -> Configuration:
    """All files as one; ConfigurationError names the first thing that is wrong, its file and line."""
    endpoints: dict[str, Endpoint] = {}
    places: dict[str, str] = {}
    rules: list[tuple[Rule, Section]] = []
    found = Configuration()
    smtp, networks, rows, size = found.smtp, found.allow_networks, found.rows, found.bytes
    mailing: Section | None = None
    for path in paths:
        section = read_section(path)
        networks += parse_networks(section)
        if (table := section.table("smtp")) is not None:
            smtp = parse_smtp(table)
        if (table := section.table("queue")) is not None:
            rows = table.integer("rows", rows, 10, 1_000_000)
            size = table.integer("bytes", size, 1 << 16, 1 << 30)
            table.finish()
        for kind in ("webhook", "email"):
            for name, table in section.tables_by_name(kind):
                endpoint = _endpoint(kind, name, table)
                if name in endpoints:
                    raise table.error(f"there is another endpoint of this name in {places[name]}")
                endpoints[name], places[name] = endpoint, str(path)
                mailing = table if kind == "email" else mailing
        rules += (parse_rule(table) for table in section.tables("rule"))
        section.finish()
    if mailing is not None and smtp is None:
        raise mailing.error("there is no mail server: a table [smtp] is missing")
    if len(endpoints) > ENDPOINTS_MAX or len(rules) > RULES_MAX:
        raise ConfigurationError(f"there are more than {ENDPOINTS_MAX} endpoints or {RULES_MAX} rules")
    for rule, place in rules:
        for name in rule.notify:
            if name not in endpoints:
                raise place.error(f"there is no endpoint {name!r}", "notify")
    return Configuration(endpoints, tuple(rule for rule, _ in rules), smtp, networks, rows, size)


def _endpoint(kind: str, name: str, section: Section) -> Webhook | Email:
    try:
        parse_name(name)
    except InvalidArgs as error:
        raise section.error(error.message) from None
    return parse_webhook(name, section) if kind == "webhook" else parse_email(name, section)
