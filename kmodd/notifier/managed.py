# SPDX-License-Identifier: LGPL-2.1-or-later
"""Endpoints added with kmodctl: what notify.toml would have for them, as JSON in the notifier's own folder."""

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from kmodd.config.section import ConfigurationError, fault
from kmodd.config.toml_file import read_document
from kmodd.errors import Conflict, InvalidArgs, NoSuchEndpoint
from kmodd.kernel.atomic_file import read_file, remove_durably, write_whole
from kmodd.model.settings import Document
from kmodd.notifier.secret_file import make_key, parse_key

Validate = Callable[[Document], None]
"""Reads the whole configuration with this document in place of the managed one; ConfigurationError when it is wrong."""


class Managed:
    """The file `managed.json` and the folder `secrets` beside it."""

    def __init__(self, folder: Path, random: Callable[[int], bytes]) -> None:
        self._path = folder / "managed.json"
        self._former = folder / "managed.toml"
        """Where earlier versions kept the same; read once, until something changes."""
        self._secrets = folder / "secrets"
        self._random = random

    def read(self) -> Document:
        """What was added, as if notify.toml had it. ConfigurationError when the file is damaged or cannot be read."""
        try:
            data = read_file(self._path)
            former = read_document(self._former) if data is None and self._former.exists() else None
            values = json.loads(data or b"{}")
        except OSError as error:
            raise fault(str(self._path), 1, f"the file cannot be read ({error.strerror})") from error
        except (ValueError, RecursionError) as error:
            raise fault(str(self._path), 1, "this is no JSON") from error
        if not isinstance(values, dict):
            raise fault(str(self._path), 1, "this is no JSON object")
        return former or self._document(values)

    def _document(self, values: Mapping[str, Any]) -> Document:
        return Document(str(self._path), values, reload="")

    def names(self) -> set[str]:
        """Endpoints that were added, and may be removed again."""
        values = self.read().values
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
        tables: dict[str, Any] = deepcopy(dict(self.read().values))
        if name in self.names():
            raise Conflict(f"endpoint {name} already exists")
        values = dict(values)
        if kind == "webhook":
            key = key or make_key(self._random(32))
            parse_key(key, "the key")
            values["secret-file"] = str(self._secrets / name)
            self._secrets.mkdir(mode=0o700, exist_ok=True)
            # Before the file that names it: after a loss of power there must be no endpoint without its key.
            write_whole(self._secrets / name, f"{key}\n".encode(), 0o600)
        tables.setdefault(kind, {})[name] = values
        tables.setdefault("rule", []).append({"notify": [name], **rule})
        try:
            self._replace(tables, validate)
        except BaseException:
            (self._secrets / name).unlink(missing_ok=True)
            raise
        return key

    def check_remove(self, name: str) -> None:
        """Raise NoSuchEndpoint for an endpoint that was not added here."""
        if name not in self.names():
            raise NoSuchEndpoint(
                f"endpoint {name} was not added with kmodctl; endpoints in notify.toml are removed there"
            )

    def remove(self, name: str, validate: Validate) -> None:
        """Remove an endpoint that was added, and its rules."""
        tables: dict[str, Any] = deepcopy(dict(self.read().values))
        self.check_remove(name)
        for kind in ("webhook", "email"):
            tables.get(kind, {}).pop(name, None)
        tables["rule"] = [rule for rule in tables.get("rule", []) if rule["notify"] != [name]]
        self._replace(tables, validate)
        (self._secrets / name).unlink(missing_ok=True)

    def _replace(self, values: Mapping[str, Any], validate: Validate) -> None:
        try:
            validate(self._document(values))
        except ConfigurationError as error:
            raise InvalidArgs(error.sentence if error.evidence.file == str(self._path) else error.message) from None
        write_whole(self._path, json.dumps(values, indent=1).encode(), 0o600)
        remove_durably(self._former)
