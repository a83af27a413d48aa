# SPDX-License-Identifier: LGPL-2.1-or-later
"""Endpoints added with kmodctl are kept whole, with their keys, and those of an earlier version are found."""

import json
from pathlib import Path

import pytest

from kmodd.config.section import ConfigurationError
from kmodd.errors import Conflict, InvalidArgs
from kmodd.model.settings import Document
from kmodd.notifier.configuration import Webhook, read_configuration
from kmodd.notifier.endpoints import Managed

URL = {"url": "https://hooks.example.org/"}


def managed(folder: Path) -> Managed:
    return Managed(folder, lambda size: b"k" * size)


def validate(document: Document) -> None:
    smtp = {"host": "localhost", "from": "kmodd@example.org"}
    read_configuration([Document("notify.toml", {"smtp": smtp})], document)


def test_what_was_added_is_read_by_the_next_notifier(tmp_path: Path) -> None:
    key = managed(tmp_path).add("webhook", "ops", URL, {"severity": "warning"}, validate)
    configuration = read_configuration((), managed(tmp_path).read())
    ops = configuration.endpoints["ops"]
    assert isinstance(ops, Webhook)
    assert (key.startswith("whsec_"), ops.keys, configuration.rules[0].severity) == (True, (b"k" * 32,), "warning")
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
        "managed.json": 0o600,
        "secrets": 0o700,
    }
    with pytest.raises(Conflict, match="endpoint ops already exists"):
        managed(tmp_path).add("webhook", "ops", URL, {}, validate)
    managed(tmp_path).remove("ops", validate)
    assert read_configuration((), managed(tmp_path).read()).endpoints == {}
    assert list((tmp_path / "secrets").iterdir()) == []


def test_what_makes_no_sense_changes_nothing(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgs, match=r"webhook\.ops\.url: expected a URL that starts with https://"):
        managed(tmp_path).add("webhook", "ops", {"url": "ftp://x"}, {}, validate)
    assert managed(tmp_path).names() == set()
    assert list((tmp_path / "secrets").iterdir()) == []


def test_the_file_of_an_earlier_version_is_read_and_replaced_by_the_first_change(tmp_path: Path) -> None:
    former = tmp_path / "managed.toml"
    former.write_text('[email.ops]\nto = ["ops@example.org"]\n\n[[rule]]\nnotify = ["ops"]\n')
    assert managed(tmp_path).names() == {"ops"}
    managed(tmp_path).add("webhook", "hook", URL, {}, validate)
    assert managed(tmp_path).names() == {"ops", "hook"}
    assert not former.exists()
    assert json.loads((tmp_path / "managed.json").read_text())["email"] == {"ops": {"to": ["ops@example.org"]}}


@pytest.mark.parametrize("data", [b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_damaged_file_is_an_error_and_not_an_empty_one(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "managed.json").write_bytes(data)
    with pytest.raises(ConfigurationError, match=r"managed\.json, line 1: this is no JSON"):
        managed(tmp_path).read()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("{}")
    (tmp_path / "managed.json").symlink_to(tmp_path / "other")
    with pytest.raises(ConfigurationError, match="the file cannot be read"):
        managed(tmp_path).read()
