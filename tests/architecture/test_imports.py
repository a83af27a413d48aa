# SPDX-License-Identifier: LGPL-2.1-or-later
"""Imports point down: `names model errors` <- `kernel` <- `config` <- `core` <- `dbus api` <- `daemon`.

Clients see only the client side.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path.relative_to(ROOT) for path in (ROOT / "kmodd").rglob("*.py"))

SHARED = (
    "kmodd.names",
    "kmodd.model",
    "kmodd.errors",
    "kmodd.suggestions",
    "kmodd.patterns",
    "kmodd.releases",
    "kmodd.text",
    "kmodd.fast_dataclass",
)
INTERFACES = ("kmodd.dbus.interface_xml",)
"""What the D-Bus API looks like: the server side and its clients read the same file."""
# The longest prefix of a file's module that stands here says what it may import of kmodd.
ALLOWED: dict[str, tuple[str, ...]] = {
    "kmodd.names": SHARED,
    "kmodd.model": SHARED,
    "kmodd.errors": SHARED,
    "kmodd.suggestions": (),
    "kmodd.patterns": (),
    "kmodd.releases": (),
    "kmodd.text": (),
    "kmodd.fast_dataclass": (),
    "kmodd.config": (*SHARED, "kmodd.config", "kmodd.kernel.files"),
    "kmodd.tokens": (*SHARED, "kmodd.kernel.atomic_file"),
    "kmodd.kernel": (*SHARED, "kmodd.kernel"),
    "kmodd.core": (*SHARED, "kmodd.config.section", "kmodd.config.settings", "kmodd.kernel.ports", "kmodd.core"),
    "kmodd.dbus": (*SHARED, "kmodd.dbus"),
    "kmodd.api": (*SHARED, "kmodd.kernel.ports", "kmodd.core", "kmodd.dbus", "kmodd.api"),
    "kmodd.journal": (*SHARED, "kmodd.core.events", "kmodd.journal"),
    "kmodd.startup": (*SHARED, "kmodd.kernel", "kmodd.startup"),
    "kmodd.daemon": ("kmodd",),
    "kmodd.client": (*SHARED, *INTERFACES, "kmodd.dbus.library", "kmodd.client"),
    "kmodd.cli": (
        *SHARED,
        "kmodd.client",
        "kmodd.startup.options",
        "kmodd.journal.writer",
        "kmodd.tokens",
        "kmodd.cli",
    ),
    "kmodd.gateway": (
        *SHARED,
        *INTERFACES,
        "kmodd.client",
        "kmodd.config",
        "kmodd.journal.fields",
        "kmodd.journal.writer",
        "kmodd.startup.sd_notify",
        "kmodd.tokens",
        "kmodd.gateway",
    ),
    # It is a server on the bus as well, behind the daemon's own gate: a second one would have the first one's holes again.
    "kmodd.notifier": (
        *SHARED,
        "kmodd.client",
        "kmodd.config",
        "kmodd.dbus",
        "kmodd.api.options",
        "kmodd.api.standard",
        "kmodd.core.events",
        "kmodd.core.audit.limit",
        "kmodd.journal.writer",
        "kmodd.kernel.atomic_file",
        "kmodd.startup",
        "kmodd.notifier",
    ),
    "kmodd.fleet": (*SHARED, "kmodd.fleet"),
    "kmodd.agent": (
        *SHARED,
        "kmodd.client",
        "kmodd.fleet",
        "kmodd.journal.writer",
        "kmodd.kernel.atomic_file",
        "kmodd.startup",
        "kmodd.agent",
    ),
    "kmodd.coordinator": (*SHARED, "kmodd.fleet", "kmodd.journal.writer", "kmodd.startup", "kmodd.coordinator"),
    "kmodd": (),
}
# Each library has one place, so that it can be exchanged there.
THIRD_PARTY: dict[str, tuple[str, ...]] = {
    "dbus_next": ("kmodd.dbus", "kmodd.client.connection"),
    "pyudev": ("kmodd.kernel.proc.uevents",),
    "systemd": ("kmodd.journal.writer", "kmodd.journal.reader", "kmodd.startup.sd_notify"),
    "structlog": ("kmodd.journal.writer", "kmodd.daemon.daemon"),
    "ctypes": ("kmodd.kernel",),
    "fastapi": ("kmodd.gateway",),
    "httpx2": ("kmodd.fleet.kubernetes",),
    "jwt": ("kmodd.gateway.http.issuer",),
    "lightkube": ("kmodd.fleet.kubernetes",),
    "msgspec": ("kmodd.fleet.kubernetes",),
    "prometheus_client": (
        "kmodd.gateway.metrics",
        "kmodd.fleet.exposition",
        "kmodd.coordinator.metrics",
        "kmodd.agent.metrics",
    ),
    "pydantic": ("kmodd.gateway.models",),
    "starlette": ("kmodd.gateway",),
    "uvicorn": ("kmodd.gateway.http.server",),
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
DAEMON_SIDE = (
    "kmodd.names",
    "kmodd.model",
    "kmodd.errors",
    "kmodd.config",
    "kmodd.kernel",
    "kmodd.core",
    "kmodd.dbus",
    "kmodd.daemon.daemon",
)


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


# What may ask a name service (nsswitch.conf(5)): a directory or a server that is away blocks such a call for seconds.
NAME_SERVICE = {"pwd", "grp", "spwd"}
NAME_CALLS = {"getaddrinfo", "gethostbyname", "gethostbyaddr", "getfqdn", "getnameinfo", "expanduser", "getlogin"}
# Programs that serve nobody; and a resolution that asyncio makes in a thread.
MAY_WAIT = ("kmodd.cli", "kmodd.notifier.channels.webhook")


def test_no_server_waits_for_a_name_service() -> None:
    wrong = []
    for path in FILES:
        if within(module_of(path), MAY_WAIT):
            continue
        wrong += [f"{path}:{line} imports {name}" for name, line in imports(path) if name.split(".")[0] in NAME_SERVICE]
        wrong += [
            f"{path}:{node.lineno} calls {node.func.attr}"
            for node in ast.walk(ast.parse((ROOT / path).read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in NAME_CALLS
        ]
    assert not wrong


@pytest.mark.parametrize(
    ("folder", "wanted"),
    [("dbus", {"kmodd/dbus/transport.py", "kmodd/dbus/library.py"}), ("client", {"kmodd/client/connection.py"})],
)
def test_dbus_next_is_behind_few_files(folder: str, wanted: set[str]) -> None:
    users = {
        str(path)
        for path in FILES
        for name, _ in imports(path)
        if name.split(".")[0] == "dbus_next" and module_of(path).startswith(f"kmodd.{folder}")
    }
    assert users == wanted
