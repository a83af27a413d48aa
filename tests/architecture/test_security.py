# SPDX-License-Identifier: LGPL-2.1-or-later
"""docs/security.md is true: every test and file that it names is there, and each rule has some; shipped polkit rules only read."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs/security.md").read_text()
RULES = 38
ROWS = [line.strip("|").split("|") for line in DOCUMENT.splitlines() if re.match(r"\| \d+\. ", line)]
CODE = re.compile(r"`([^`]+)`")
NAMED = sorted({name for name in CODE.findall(DOCUMENT) if "::" in name})
READING = {"org.kmodd1.read-history", "org.kmodd1.inspect"}
LEFT_OPEN = re.compile(r"if \([^{]*\{\s*return undefined;\s*\}")
"""What a rule does not decide."""
ACTION = re.compile(r'"(org\.kmodd1\.[a-z-]+)"')


@cache
def functions_of(path: str) -> frozenset[str]:
    """Names of the functions of a file, those in classes included."""
    tree = ast.parse((ROOT / path).read_text())
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("name", NAMED)
def test_a_test_that_is_named_exists(name: str) -> None:
    path, _, function = name.partition("::")
    assert function.startswith("test_")
    assert function in functions_of(path)


def test_every_rule_has_a_place_and_a_test() -> None:
    assert [int(rule.strip().partition(".")[0]) for rule, _, _ in ROWS] == list(range(1, RULES + 1))
    for rule, where, tests in ROWS:
        files, names = CODE.findall(where), CODE.findall(tests)
        assert files, rule
        assert names, rule
        assert not [file for file in files if not (ROOT / file).exists()], rule
        assert not [name for name in names if name not in NAMED], rule


def rules_of(folder: Path) -> dict[str, str]:
    """The text of each file of rules, without comments."""
    return {path.name: re.sub(r"(?m)^\s*//.*$", "", path.read_text()) for path in sorted(folder.glob("*.rules"))}


def test_rules_as_shipped_grant_nothing_but_reading() -> None:
    """A service that is taken over changes nothing, unless the administrator has written so."""
    shipped = rules_of(ROOT / "polkit")
    assert shipped
    for name, text in shipped.items():
        assert "subject.user" in text, f"{name} is about one user"
        assert "subject.isInGroup" not in text
        decided = LEFT_OPEN.sub("", text)
        assert set(ACTION.findall(decided)) <= READING, name
        assert len(ACTION.findall(decided)) == decided.count("org.kmodd1."), f"{name} names actions whole"


def test_rules_to_copy_name_modules_and_parameters() -> None:
    examples = rules_of(ROOT / "polkit/examples")
    assert examples
    for name, text in examples.items():
        assert 'action.lookup("modules")' in text, name
        assert 'action.lookup("parameters")' in text, name
        assert "_KEEP" not in text, name
