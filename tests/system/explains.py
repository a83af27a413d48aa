# SPDX-License-Identifier: LGPL-2.1-or-later
"""What `kmodctl why` finds, as a table made from the tests that prove it: `python -m tests.system.explains` prints it for kmodctl(1)."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T", bound="Callable[..., None]")
FOLDER = Path(__file__).parent


def explains(what: str, command: str) -> Callable[[T], T]:
    """Marks a test that has the real kernel's module held by `what`, and runs the printed `command` that ends it."""
    assert what
    assert command
    return lambda test: test


def rows() -> Iterator[tuple[str, str, str]]:
    """What, its command, and the source of the test, in the order of the tests."""
    for file in sorted(FOLDER.glob("test_*.py"), key=lambda path: (path.name != "test_explain.py", path.name)):
        text = file.read_text()
        for node in ast.parse(text).body:
            for mark in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
                if isinstance(mark, ast.Call) and isinstance(mark.func, ast.Name) and mark.func.id == "explains":
                    what, command = (str(ast.literal_eval(each)) for each in mark.args)
                    yield what, command, "\n".join(ast.unparse(each) for each in _body(node))


def _body(node: ast.stmt) -> list[ast.stmt]:
    return node.body if isinstance(node, ast.FunctionDef) else []


def table() -> str:
    """As scdoc(5) has it."""
    lines = ["][ *In use by*", ":< *Ended by*"]
    for what, command, _ in rows():
        lines += [f"|  {what}", f":  _{command.replace('_', chr(92) + '_')}_"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
