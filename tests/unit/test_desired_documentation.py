# SPDX-License-Identifier: LGPL-2.1-or-later
"""The man pages of the settings files name every key with its default, and their examples are right."""

import re
from pathlib import Path

import pytest

from kmodd.core.desired_files import KEYS, read_wishes
from kmodd.core.tunables import TABLES, read_tunables
from kmodd.kernel.toml_file import parse_document

DOCS = Path(__file__).parents[2] / "docs"


def page(name: str) -> str:
    """The page's source with roff's escapes undone."""
    text = (DOCS / name).read_text()
    for escape, plain in (("\\-", "-"), ("\\(dq", '"'), ("\\~", " ")):
        text = text.replace(escape, plain)
    return text


def examples(name: str) -> list[str]:
    return re.findall(r"^\.EX\n(.*?)^\.EE$", page(name), flags=re.MULTILINE | re.DOTALL)


def test_every_key_of_modules_is_explained() -> None:
    named = set(re.findall(r"^\.TP\n\.B (\S+)$", page("kmodd-modules.d.5"), flags=re.MULTILINE))
    assert named == set(KEYS)


def test_every_daemon_setting_is_explained() -> None:
    found: dict[str, tuple[str, ...]] = {}
    for section in re.split(r"^\.SS ", page("kmodd.toml.5"), flags=re.MULTILINE)[1:]:
        table = section.partition("\n")[0].strip("[]")
        found[table] = tuple(re.findall(r"^\.BR (\S+) \" \(", section, flags=re.MULTILINE))
    assert found == dict(TABLES)


@pytest.mark.parametrize("example", examples("kmodd-modules.d.5"))
def test_examples_of_wishes_are_right(example: str) -> None:
    assert len(read_wishes([parse_document(example, "example")])) == 1


@pytest.mark.parametrize("example", examples("kmodd.toml.5"))
def test_examples_of_settings_are_right(example: str) -> None:
    assert read_tunables([parse_document(example, "example")]).timeout == 120
