# SPDX-License-Identifier: LGPL-2.1-or-later
"""Imports point down: `names model errors` <- `kernel` <- `core` <- `bus` <- `daemon`; clients see only the client side."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path.relative_to(ROOT) for path in (ROOT / "kmodd").rglob("*.py"))

SHARED = ("kmodd.names", "kmodd.model", "kmodd.errors")
CLIENT_SIDE = (
    "kmodd.client",
    "kmodd.client_answers",
    "kmodd.client_configuration",
    "kmodd.client_evidence",
    "kmodd.client_hints",
    "kmodd.client_notifier",
    "kmodd.client_reading",
    "kmodd.client_store",
    "kmodd.client_transport",
)
# The longest prefix of a file's module that stands here says what it may import of kmodd.
ALLOWED: dict[str, tuple[str, ...]] = {
    "kmodd.names": SHARED,
    "kmodd.model": SHARED,
    "kmodd.errors": SHARED,
    "kmodd.kernel": (*SHARED, "kmodd.kernel"),
    "kmodd.core": (*SHARED, "kmodd.kernel.ports", "kmodd.core"),
    "kmodd.bus": (*SHARED, "kmodd.core", "kmodd.bus"),
    "kmodd.client": (*SHARED, *CLIENT_SIDE),
    "kmodd.cli": (*SHARED, *CLIENT_SIDE, "kmodd.settings", "kmodd.log", "kmodd.tokens", "kmodd.cli"),
    "kmodd.gateway": (
        *SHARED,
        *CLIENT_SIDE,
        "kmodd.journal_fields",
        "kmodd.log",
        "kmodd.supervisor",
        "kmodd.tokens",
        "kmodd.gateway",
    ),
    "kmodd.tokens": SHARED,
    "kmodd.notifier": (*SHARED, *CLIENT_SIDE, "kmodd.settings", "kmodd.log", "kmodd.supervisor", "kmodd.notifier"),
    "kmodd.supervisor": SHARED,
    "kmodd.settings": SHARED,
    "kmodd.watchdog": SHARED,
    "kmodd.log": (*SHARED, "kmodd.core.api", "kmodd.journal_fields"),
    "kmodd.journal": (*SHARED, "kmodd.core.api", "kmodd.journal_fields"),
    "kmodd.journal_fields": SHARED,
    "kmodd.kept_state": (*SHARED, "kmodd.kernel"),
    "kmodd.known_wishes": SHARED,
    "kmodd.machine": (*SHARED, "kmodd.settings", "kmodd.kernel"),
    "kmodd.custom": (*SHARED, "kmodd.settings", "kmodd.kernel", "kmodd.core"),
    "kmodd.wanted": (*SHARED, "kmodd.kernel", "kmodd.core", "kmodd.known_wishes"),
    "kmodd.daemon": ("kmodd",),
    "kmodd": (),
}
# Each library has one place, so that it can be exchanged there.
THIRD_PARTY: dict[str, tuple[str, ...]] = {
    "dbus_next": ("kmodd.bus", "kmodd.client_reading", "kmodd.client_transport", "kmodd.notifier.bus_name"),
    "pyudev": ("kmodd.kernel.uevents",),
    "systemd": ("kmodd.log", "kmodd.journal", "kmodd.supervisor"),
    "structlog": ("kmodd.log", "kmodd.daemon"),
    "ctypes": ("kmodd.kernel",),
    "fastapi": ("kmodd.gateway",),
    "jwt": ("kmodd.gateway.issuer",),
    "prometheus_client": ("kmodd.gateway.counts",),
    "pydantic": ("kmodd.gateway.models", "kmodd.gateway.models_rules"),
    "starlette": ("kmodd.gateway",),
    "uvicorn": ("kmodd.gateway.server",),
}
# The daemon is small because these stay out of it; the command line may have them.
HEAVY = (
    "argparse",
    "concurrent.futures",
    "logging.config",
    "ssl",
    "subprocess",
    "tempfile",
    "typing_extensions",
    "unittest",
    "xml.dom",
)
DAEMON_SIDE = ("kmodd.names", "kmodd.model", "kmodd.errors", "kmodd.kernel", "kmodd.core", "kmodd.bus", "kmodd.daemon")


def module_of(path: Path) -> str:
    """The module's name, a package's without its `__init__`."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, *, top_level: bool = False) -> Iterator[tuple[str, int]]:
    """(absolute module, line) of each import, with the name appended where a package is imported from."""
    tree = ast.parse((ROOT / path).read_text())
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                is_module = (ROOT / name.replace(".", "/")).with_suffix(".py").exists() or (
                    ROOT / name.replace(".", "/")
                ).is_dir()
                yield (name if is_module else str(node.module)), node.lineno


def within(module: str, prefixes: tuple[str, ...]) -> bool:
    """The module is one of these or inside one of them."""
    return any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes)


def row(module: str) -> tuple[str, ...]:
    """The longest matching row; a new top-level file has to get one."""
    matches = [
        prefix for prefix in ALLOWED if module == prefix or (prefix != "kmodd" and module.startswith(prefix + "."))
    ]
    if module.startswith("kmodd.client_"):
        matches.append("kmodd.client")
    assert matches, f"{module} has no row in the import table"
    return ALLOWED[max(matches, key=len)]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_down(path: Path) -> None:
    module = module_of(path)
    allowed = row(module)
    wrong = [
        f"{path}:{line} imports {name}"
        for name, line in imports(path)
        if within(name, ("kmodd",)) and name != "kmodd" and not within(name, allowed)
    ]
    assert not wrong


@pytest.mark.parametrize("path", FILES, ids=str)
def test_each_library_has_its_place(path: Path) -> None:
    module = module_of(path)
    wrong = [
        f"{path}:{line} imports {name}"
        for name, line in imports(path)
        if (library := name.split(".")[0]) in THIRD_PARTY and not within(module, THIRD_PARTY[library])
    ]
    assert not wrong


@pytest.mark.parametrize("path", [p for p in FILES if within(module_of(p), DAEMON_SIDE)], ids=str)
def test_the_daemon_imports_nothing_heavy(path: Path) -> None:
    assert not [f"{path}:{line}: {name}" for name, line in imports(path, top_level=True) if within(name, HEAVY)]


@pytest.mark.parametrize(
    ("folder", "wanted"),
    [("bus", {"kmodd/bus/transport.py"}), ("client", {"kmodd/client_reading.py", "kmodd/client_transport.py"})],
)
def test_dbus_next_is_behind_one_file(folder: str, wanted: set[str]) -> None:
    """The client's reading is a part of its transport, and nobody else's."""
    users = {
        str(path)
        for path in FILES
        for name, _ in imports(path)
        if name.split(".")[0] == "dbus_next" and module_of(path).startswith(f"kmodd.{folder}")
    }
    assert users == wanted
    readers = {str(path) for path in FILES for name, _ in imports(path) if name == "kmodd.client_reading"}
    assert readers == {"kmodd/client_transport.py"}
