# SPDX-License-Identifier: LGPL-2.1-or-later
"""README, CONTRIBUTING and docs/*.md are true: links, commands, paths and examples; and they use the words of the field."""

import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmodd.cli import arguments
from kmodd.cli.commands.surface_report import read_controls
from kmodd.config.toml_file import parse_document
from kmodd.core.desired.state import read_desired_modules
from kmodd.core.surface.policy import read_policy
from kmodd.core.surface.vulnerabilities import read_records
from kmodd.gateway import settings

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")), *(ROOT / "docs").glob("*.md")]
)
PATTERNS = (
    "ansible/*.md",
    "docs/man/*.scd",
    "docs/*.conf",
    "docs/alerts.yml",
    "systemd/*",
    "polkit/*.*",
    "polkit/examples/*",
    "dbus/*",
)
TEXTS = sorted([*PAGES, *(path for pattern in PATTERNS for path in ROOT.glob(pattern))])
"""What administrators and programmers read besides the code."""
README_LINES = 200
LINK = re.compile(r"\[[^\]]*\]\(([^)#:]+)(?:#[^)]*)?\)")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PATH = re.compile(r"`((?:kmodd|tests|dbus|systemd|polkit|install|docs)/[\w./*-]+)`")
PROMPT = re.compile(r"^\S*[#$] (.*)$", re.MULTILINE)
AVOIDED = re.compile(
    r"\b(told|whoever|nobody|somebody|anybody|anew|mend(?:s|ed|ing)?|in force|as it is wanted|wish(?:es|ed)?"
    r"|of (?:its|their|his) own)\b",
    re.IGNORECASE,
)
"""Words of no field: CONTRIBUTING, Language, has those to write instead."""


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def blocks(path: Path, *languages: str) -> list[str]:
    """The code of a page in these languages."""
    return [code for language, code in BLOCK.findall(path.read_text()) if language in languages]


def commands(program: str) -> Iterator[list[str]]:
    """Each call of a program in the shell examples of all pages, split as a shell does."""
    for path in PAGES:
        typed = [line for block in blocks(path, "sh") for line in block.splitlines()]
        typed += [line for block in blocks(path, "console") for line in PROMPT.findall(block)]
        for line in typed:
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            yield from calls(list(lexer), program)


def calls(words: list[str], program: str) -> Iterator[list[str]]:
    """What stands between a program and the next operator of the shell."""
    for start, word in enumerate(words):
        if word == program and (start == 0 or words[start - 1] in {"sudo", ";", "|", "&&", "&"}):
            rest = words[start + 1 :]
            end = next((n for n, each in enumerate(rest) if set(each) <= set(";|&<>()")), len(rest))
            yield rest[:end]


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    readme = ROOT / "README.md"
    assert len(readme.read_text().splitlines()) <= README_LINES
    linked = set(LINK.findall(readme.read_text()))
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} <= linked


@pytest.mark.parametrize("page", names(PAGES))
def test_what_a_page_links_to_is_there(page: str) -> None:
    path = ROOT / page
    assert not [link for link in LINK.findall(path.read_text()) if not (path.parent / link).exists()]


@pytest.mark.parametrize("page", names(PAGES))
def test_a_path_that_a_page_names_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    assert not [path for path in PATH.findall(text) if not [*ROOT.glob(path.rstrip("/"))]]


def test_every_kmodctl_command_is_one() -> None:
    found = [words for words in commands("kmodctl") if words]
    assert len(found) > 30
    for words in found:
        assert arguments.parse(words).run.startswith("kmodd.cli."), words


def test_every_target_of_make_is_one() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = {
        word for path in PAGES for line in re.findall(r"\bmake ([a-z][a-z -]*)", code(path)) for word in line.split()
    }
    assert {"install", "install-deps", "demo", "test"} <= targets
    assert not [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)]


def code(path: Path) -> str:
    """The code of a page: blocks, indented lines and what stands between backquotes."""
    text = path.read_text()
    inline = re.findall(r"`([^`\n]+)`", text)
    return "\n".join(
        [
            *(re.sub("#.*", "", each) for each in blocks(path, "sh")),
            *re.findall(r"^    make [a-z ]+", text, re.MULTILINE),
            *inline,
        ]
    )


def test_examples_of_the_configuration_are_valid(tmp_path: Path) -> None:
    (desired,) = blocks(ROOT / "docs/desired-state.md", "toml")
    assert len(read_desired_modules([parse_document(desired, "example")])) == 2
    policy, record, benchmark = blocks(ROOT / "docs/attack-surface.md", "toml")
    assert list(read_records([parse_document(record, "example")])) == ["CVE-2026-31431"]
    (tmp_path / "site.toml").write_text(benchmark)
    assert [control.module for control in read_controls(str(tmp_path / "site.toml"))] == ["dccp"]
    shipped = [parse_document(path.read_text(), path.name) for path in (ROOT / "install/surface.d").glob("*.toml")]
    assert len(read_policy([*shipped, parse_document(policy, "example")]).profiles) == 2
    (issuer,) = blocks(ROOT / "docs/gateway.md", "toml")
    (tmp_path / "gateway.toml").write_text(issuer)
    assert len(settings.read(tmp_path / "gateway.toml").issuers) == 1
    (notify,) = blocks(ROOT / "docs/notifications.md", "toml")
    assert tomllib.loads(notify)["rule"][0]["notify"] == ["ops", "admins"]


def test_the_python_example_imports_what_there_is() -> None:
    (example,) = blocks(ROOT / "docs/api.md", "python")
    compile(example, "example", "exec")
    imports = re.findall(r"^from (kmodd\S*) import (\w+)$", example, re.MULTILINE)
    assert imports
    assert not [(module, name) for module, name in imports if not hasattr(importlib.import_module(module), name)]


def prose(path: Path) -> str:
    """The sentences of a page, without code and quotations."""
    return re.sub(r'`[^`\n]*`|"[^"\n]*"', "", BLOCK.sub("", path.read_text()))


@pytest.mark.parametrize("page", names(TEXTS))
def test_the_words_are_those_of_the_field(page: str) -> None:
    assert not [match.group() for match in AVOIDED.finditer(prose(ROOT / page))]


def test_every_kind_of_text_is_read() -> None:
    assert all(any(ROOT.glob(pattern)) for pattern in PATTERNS)
