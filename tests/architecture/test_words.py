# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sentences and names of the code use the words of the field; CONTRIBUTING, Language, has those to write instead."""

import ast
import re
import tokenize
from collections import Counter
from pathlib import Path

import pytest

from tests.architecture.test_documentation import AVOIDED, ROOT

CODE = sorted([*(ROOT / "kmodd").rglob("*.py"), *(ROOT / "ansible").rglob("*.py")])
SCRIPTS = sorted(
    path
    for folder in ("cockpit", "kmodd/gateway/static")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".js", ".html")
)
AVOIDED_IN_CODE = re.compile(
    rf"{AVOIDED.pattern}|\b(asked|wanted|said|at once|goes on|for ever|half[ -]way)\b", re.IGNORECASE
)
ALLOWED = {
    "ansible/plugins/modules/desired_state.py": {"wanted"},  # a key of GetDrift
    "ansible/plugins/modules/info.py": {"wanted"},  # likewise
    "kmodd/kernel/simulated/modules.py": {"for ever"},  # descriptions of the modules in tests/modules
}
"""Words that a file has for a reason. An entry that nothing needs fails."""

GENERIC = frozenset({"found", "one", "told", "asked", "known", "said", "who", "given", "whole", "seen"})
"""Names of variables that say nothing of what they hold."""
GENERIC_MAX = 1
"""Bindings of such names in one file."""
GENERIC_LEFT = {
    "kmodd/coordinator/coordinator.py": 2,
    "kmodd/fleet/kubernetes.py": 3,
    "kmodd/fleet/resources.py": 2,
    "kmodd/kernel/users/consequences.py": 3,
    "kmodd/kernel/users/inspector_client.py": 3,
    "kmodd/kernel/users/mount.py": 3,
    "kmodd/kernel/users/network.py": 3,
    "kmodd/kernel/users/process.py": 2,
    "kmodd/kernel/users/settings.py": 2,
}
"""Files that have more for now. An entry that nothing needs fails."""


def sentences(path: Path) -> str:
    """Comments, docstrings and messages of a Python file, without what stands between backquotes or braces."""
    with path.open("rb") as file:
        tokens = [each.string for each in tokenize.tokenize(file.readline) if each.type in _PROSE]
    return re.sub(r"`[^`\n]*`|\{[^}\n]*\}", "", "\n".join(text for text in tokens if " " in text))


_PROSE = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}


def script_sentences(path: Path) -> str:
    """Comments and texts of a script or a page, without what stands between backquotes or braces."""
    text = path.read_text()
    if path.suffix == ".html":
        return re.sub(r"<[^>]*>", "", text)
    comments = re.findall(r"//[^\n]*|/\*.*?\*/", text, re.DOTALL)
    texts = [each for each in re.findall(r'"[^"\n]*"|`[^`\n]*`', text) if " " in each]
    return re.sub(r"`\w+(?:\(\w*\))?`|\{[^}\n]*\}", "", "\n".join([*comments, *texts]))


def generic_names(tree: ast.AST) -> Counter[str]:
    """How often each generic name is bound: by assignment, loop, parameter or pattern."""
    names: Counter[str] = Counter()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name) | ast.MatchAs(name=str() as name):
                names[name] += name in GENERIC
    return +names


def test_sentences_of_the_code() -> None:
    words = {
        str(path.relative_to(ROOT)): {match.group().lower() for match in AVOIDED_IN_CODE.finditer(sentences(path))}
        for path in CODE
    }
    wrong = {file: sorted(each - ALLOWED.get(file, set())) for file, each in words.items()}
    assert not {file: each for file, each in wrong.items() if each}
    assert all(each <= words[file] for file, each in ALLOWED.items()), "an exception that nothing needs"


def test_sentences_of_the_pages() -> None:
    words = {
        path.name: [match.group() for match in AVOIDED_IN_CODE.finditer(script_sentences(path))] for path in SCRIPTS
    }
    assert len(words) > 20
    assert not {file: each for file, each in words.items() if each}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def f():\n    '''Whoever calls it.'''\n", ["Whoever"]),
        ("raise E(f'{told} is told of it')\n", ["told"]),
        ("x = told  # asked again\n", ["asked"]),
        ("told = {'wanted': asked}  # see `said`\n", []),
    ],
)
def test_finds_the_words_of_sentences_and_not_of_code(code: str, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "code.py"
    path.write_text(code)
    assert [match.group() for match in AVOIDED_IN_CODE.finditer(sentences(path))] == words


def test_variables_say_what_they_hold() -> None:
    names = {str(path.relative_to(ROOT)): generic_names(ast.parse(path.read_text())) for path in CODE}
    assert not {file: dict(each) for file, each in names.items() if each.total() > GENERIC_LEFT.get(file, GENERIC_MAX)}
    assert all(names[file].total() > GENERIC_MAX for file in GENERIC_LEFT), "an exception that nothing needs"


def test_finds_generic_names() -> None:
    code = "def f(asked):\n    found = [one for one in asked]\n    match found:\n        case told: pass\n"
    assert generic_names(ast.parse(code)).total() == 4
