# SPDX-License-Identifier: LGPL-2.1-or-later
"""The man pages of the settings files name every key with its default, and their examples are right."""

import re
from pathlib import Path

import pytest

from kmodd.config.settings import TABLES, read_daemon_settings
from kmodd.config.toml_file import parse_document
from kmodd.core.desired.state import KEYS, read_desired_modules

PAGES = Path(__file__).parents[2] / "docs" / "man"


def page(name: str) -> str:
    """The page's source."""
    return (PAGES / f"{name}.scd").read_text()


def examples(name: str) -> list[str]:
    return re.findall(r"^```\n(.*?)^```$", page(name), flags=re.MULTILINE | re.DOTALL)


def test_every_key_of_modules_is_explained() -> None:
    named = set(re.findall(r"^\*(\S+)\*$", page("kmodd-modules.d.5"), flags=re.MULTILINE))
    assert named == set(KEYS)


def test_every_daemon_setting_is_explained() -> None:
    found: dict[str, tuple[str, ...]] = {}
    for section in re.split(r"^## ", page("kmodd.toml.5"), flags=re.MULTILINE)[1:]:
        table = section.partition("\n")[0].strip("[]")
        found[table] = tuple(re.findall(r"^\*(\S+)\* \(", section, flags=re.MULTILINE))
    assert found == dict(TABLES)


@pytest.mark.parametrize("example", examples("kmodd-modules.d.5"))
def test_examples_of_wishes_are_right(example: str) -> None:
    assert len(read_desired_modules([parse_document(example, "example")])) == 1


@pytest.mark.parametrize("example", examples("kmodd.toml.5"))
def test_examples_of_settings_are_right(example: str) -> None:
    assert read_daemon_settings([parse_document(example, "example")]).timeout == 120
