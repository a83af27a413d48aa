# SPDX-License-Identifier: LGPL-2.1-or-later
"""Facts are attributes: no code takes a sentence apart that kmodd made.

A sentence is known by its name: `message`, `hint`, `detail` … of an error, a finding, a check, a reply or a row, or an error made
a text. Searching, splitting and cutting such an expression is found here, as is the test whether it contains or begins with
something. What others say (the kernel's log, modprobe, tomllib) is of course parsed, under other names.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "kmodd").rglob("*.py"))

SENTENCES = frozenset(
    {"message", "sentence", "hint", "detail", "because", "blocker", "blockers", "cause", "policy", "problem", "complaint", "said"}
)  # fmt: skip
ERRORS = frozenset({"error", "exc", "exception", "refusal", "refused", "fault", "failure", "problem"})
"""Names of exceptions, whose text is a sentence as well."""
TAKES_APART = frozenset(
    {"split", "rsplit", "partition", "rpartition", "splitlines", "startswith", "endswith", "removeprefix", "removesuffix",
     "replace", "find", "rfind", "index", "rindex", "count", "translate"}
)  # fmt: skip
MATCHES = frozenset({"match", "fullmatch", "search", "split", "sub", "subn", "findall", "finditer"})

ALLOWED: dict[tuple[str, str], str] = {
    (
        "config/toml_file.py",
        "str(error)",
    ): "tomllib's own sentence: before Python 3.14 its errors have no attribute for the line",
    ("kernel/modules/signature.py", "message"): "a signature is a message of PKCS#7",
}
"""(file below kmodd, expression): why it is taken apart all the same. An entry that is no longer needed fails."""


def is_sentence(node: ast.expr) -> bool:
    """The expression is a sentence by its name, or a text made of one."""
    match node:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name in SENTENCES
        case ast.Subscript(slice=ast.Constant(value=str() as key)):
            return key.replace("-", "_") in SENTENCES
        case ast.Call(func=ast.Name(id="str"), args=[ast.Name(id=name) | ast.Attribute(attr=name)]):
            return name in ERRORS | SENTENCES
        case ast.Call(func=ast.Name(id="str" | "clean" | "_text" | "repr"), args=[inner, *rest]):
            return is_sentence(inner) or any(_is_key(one) for one in rest)
        case ast.Call(func=ast.Attribute(attr="text" | "get"), args=[key, *_]):
            return _is_key(key)
        case ast.Call(func=ast.Attribute(value=inner, attr="lower" | "strip" | "rstrip" | "lstrip" | "casefold")):
            return is_sentence(inner)
        case ast.BoolOp(values=values):
            return any(map(is_sentence, values))
    return False


def _is_key(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and str(node.value).replace("-", "_") in SENTENCES


def taken_apart(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, expression) of every sentence that is searched or cut."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=value, attr=method)) if method in TAKES_APART and is_sentence(value):
                yield node.lineno, ast.unparse(value)
            case ast.Call(func=ast.Attribute(attr=method), args=arguments) if method in MATCHES:
                yield from ((node.lineno, ast.unparse(one)) for one in arguments if is_sentence(one))
            case ast.Compare(ops=operators, comparators=others):
                for operator, other in zip(operators, others, strict=True):
                    if isinstance(operator, ast.In | ast.NotIn) and is_sentence(other):
                        yield node.lineno, ast.unparse(other)
            case ast.Subscript(value=value, slice=ast.Slice()) if is_sentence(value):
                yield node.lineno, ast.unparse(value)
            case ast.match_case(pattern=ast.MatchClass(kwd_attrs=names)) if SENTENCES & set(names):
                yield node.pattern.lineno, ast.unparse(node.pattern)


@pytest.mark.parametrize(
    "code",
    [
        "x = error.message.partition(': ')[2]",
        "if 'is not signed' in error.message: pass",
        "if check.module not in clean(check.message): pass",
        "re.match('a', finding.message)",
        "_WORD.search(str(error))",
        "x = _PATHS.split(row['message'])",
        "x = str(error).replace('a', 'b')",
        "x = fields.text('hint').split()",
        "x = _text(row, 'message').startswith('health is')",
        "x = message.lower().rstrip('.').replace('a', '')",
        "x = error.evidence.hint.endswith('.')",
        "x = found.policy.partition(':')",
        "x = failure.message[3:]",
        "x = any(name in explanation.because for name in names)",
        "match error:\n    case KmoddError(message='no'): pass",
    ],
)
def test_finds_what_takes_a_sentence_apart(code: str) -> None:
    assert list(taken_apart(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "x = f'{error.message}; {clause}'",
        "x = line.partition(':')",
        "if error.evidence.rule_kind == 'blacklist': pass",
        "x = error.message or error.title",
        "x = wrap(clean(check.message), 80)",
        "if key in messages: pass",
        "x = path.name.startswith('.')",
    ],
)
def test_leaves_alone_what_makes_or_shows_one(code: str) -> None:
    assert not list(taken_apart(ast.parse(code)))


def test_no_code_takes_a_sentence_of_kmodds_own_apart() -> None:
    found: dict[tuple[str, str], list[int]] = {}
    for path in FILES:
        for line, text in taken_apart(ast.parse(path.read_text(encoding="utf-8"))):
            found.setdefault((str(path.relative_to(ROOT / "kmodd")), text), []).append(line)
    wrong = [f"kmodd/{file}:{lines[0]}: {text}" for (file, text), lines in found.items() if (file, text) not in ALLOWED]
    assert not wrong, "carry the fact as an attribute: " + "; ".join(wrong)
    assert not ALLOWED.keys() - found.keys(), "an exception that nothing needs any more"
