# SPDX-License-Identifier: LGPL-2.1-or-later
"""A machine to ask modprobe and kmodd about: module files, configuration, what is loaded, and questions."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kmodd.model import Verb
from tests.kernel.fakeroot import FakeModule, FakeRoot

FILE = "etc/modprobe.d/test.conf"


@dataclass(frozen=True)
class Question:
    """Something to ask for by a name or an alias."""

    verb: Verb
    name: str
    parameters: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Configuration:
    """What an administrator and the boot loader say."""

    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Lines by path below the root."""
    command_line: str = ""
    loaded: tuple[str, ...] = ()
    """Canonical names, in the order in which they were loaded."""


@dataclass(frozen=True)
class Tree:
    """Modules, and the direct dependencies of each by canonical name."""

    modules: tuple[FakeModule, ...]

    def needs(self) -> dict[str, tuple[str, ...]]:
        """The modules with a file whose symbols each uses."""
        files = {canonical(module.name) for module in self.modules if not module.builtin}
        return {
            canonical(module.name): tuple(need for need in map(canonical, module.depends) if need in files)
            for module in self.modules
            if not module.builtin
        }

    def whole(self, loaded: tuple[str, ...]) -> tuple[str, ...]:
        """The modules with everything they need, in an order in which they can be loaded."""
        needs = self.needs()
        order: dict[str, None] = {}

        def add(name: str) -> None:
            for need in needs.get(name, ()):
                add(need)
            order[name] = None

        for name in loaded:
            if name in needs:
                add(name)
        return tuple(order)


def canonical(name: str) -> str:
    """A module's name as the kernel spells it."""
    return name.replace("-", "_")


def build(tree: Tree, root: Path) -> FakeRoot:
    """Write the modules and their indexes below a new root."""
    return FakeRoot(root, list(tree.modules)).build()


def configure(root: Path, files: Mapping[str, tuple[str, ...]]) -> None:
    """Replace the configuration below the root."""
    for folder in ("etc/modprobe.d", "run/modprobe.d", "usr/local/lib/modprobe.d", "usr/lib/modprobe.d"):
        shutil.rmtree(root / folder, ignore_errors=True)
    shutil.rmtree(root / "lib/modprobe.d", ignore_errors=True)
    for name, lines in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode("".join(f"{line}\n" for line in lines)))
