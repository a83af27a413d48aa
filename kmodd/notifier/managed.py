# SPDX-License-Identifier: LGPL-2.1-or-later
"""Endpoints added with kmodctl: a file in the language of notify.toml, in the notifier's own folder, written by it alone."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tomllib import loads
from typing import Any

from kmodd.errors import Conflict, InvalidArgs, NoSuchEndpoint
from kmodd.notifier.secret_file import make_key, parse_key
from kmodd.notifier.section import ConfigurationError

HEADER = "# Written by kmodd-notifier for `kmodctl notify`; changes made by hand are lost.\n"

Validate = Callable[[Path], None]
"""Reads the whole configuration with this file in place of the managed one; ConfigurationError when it makes no sense."""


class Managed:
    """The file `managed.toml` and the folder `secrets` beside it."""

    def __init__(self, folder: Path, random: Callable[[int], bytes]) -> None:
        self.path = folder / "managed.toml"
        self._secrets = folder / "secrets"
        self._random = random

    def names(self) -> set[str]:
        """Endpoints that were added, and may be removed again."""
        values = self._read()
        return {name for kind in ("webhook", "email") for name in values.get(kind, {})}

    def add(
        self,
        kind: str,
        name: str,
        values: Mapping[str, Any],
        rule: Mapping[str, Any],
        validate: Validate,
        key: str = "",
    ) -> str:
        """Add an endpoint with one rule; the signing key of a webhook, once and never again.

        InvalidArgs when the configuration would make no sense with it.
        """
        found = self._read()
        if name in self.names():
            raise Conflict(f"there is an endpoint {name} already")
        values = dict(values)
        if kind == "webhook":
            key = key or make_key(self._random(32))
            parse_key(key, "the key")
            values["secret-file"] = str(self._secrets / name)
            self._secrets.mkdir(mode=0o700, exist_ok=True)
            _write(self._secrets / name, key + "\n")
            # Before the file that names it: after a loss of power there must be no endpoint without its key.
            _sync(self._secrets)
        found.setdefault(kind, {})[name] = values
        found.setdefault("rule", []).append({"notify": [name], **rule})
        try:
            self._replace(found, validate)
        except BaseException:
            (self._secrets / name).unlink(missing_ok=True)
            raise
        return key

    def remove(self, name: str, validate: Validate) -> None:
        """Remove an endpoint that was added, and its rules."""
        found = self._read()
        if name not in self.names():
            raise NoSuchEndpoint(f"no endpoint {name} was added with kmodctl; what notify.toml has is removed there")
        for kind in ("webhook", "email"):
            found.get(kind, {}).pop(name, None)
        found["rule"] = [rule for rule in found.get("rule", []) if rule["notify"] != [name]]
        self._replace(found, validate)
        (self._secrets / name).unlink(missing_ok=True)

    def _read(self) -> dict[str, Any]:
        try:
            return loads(self.path.read_text())
        except FileNotFoundError:
            return {}

    def _replace(self, values: Mapping[str, Any], validate: Validate) -> None:
        candidate = self.path.with_name("managed.new")
        _write(candidate, HEADER + _spell(values))
        try:
            validate(candidate)
        except ConfigurationError as error:
            candidate.unlink()
            raise InvalidArgs(str(error).replace(f"{candidate}, ", "with it, ")) from None
        candidate.replace(self.path)
        _sync(self.path.parent)


def _write(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _spell(values: Mapping[str, Any]) -> str:
    lines: list[str] = []
    for kind in ("webhook", "email"):
        for name, table in values.get(kind, {}).items():
            lines += [f"[{kind}.{name}]", *_pairs(table), ""]
    for rule in values.get("rule", ()):
        lines += ["[[rule]]", *_pairs(rule), ""]
    return "\n".join(lines)


def _pairs(table: Mapping[str, Any]) -> Sequence[str]:
    # JSON's texts, numbers and lists are TOML's as well, as long as the texts are ASCII: these were checked to be.
    return [f"{key} = {json.dumps(value)}" for key, value in table.items()]
