"""A machine in which the Kubernetes agent is installed too, and can reach one port of this host: the API server's."""

from __future__ import annotations

import io
import re
import tarfile
from importlib.metadata import PackageNotFoundError, distribution
from typing import TYPE_CHECKING

from tests.vm import image, snapshot
from tests.vm.machine import Machine
from tests.vm.progress import say
from tests.vm.qemu import HOST, Options

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS = Options(network=True)
API = "kubernetes"
"""The name of the API server in the machine, one of those in its certificate."""
PORT = 6443
LIBRARIES = "/usr/local/lib/kmodd/libraries"
_PREPARE = f"""
set -eu
make -C {snapshot.SOURCE} install-agent
echo '{HOST} {API}' >> /etc/hosts
systemctl start kmodd.service
"""


def start(port: int) -> Machine:
    """A fresh machine with kmodd running and the agent installed; the API server is at this port of this host."""
    built = image.build()
    tree, libraries = snapshot.installed_tree(), _libraries("lightkube", "prometheus-client")
    inputs: list[str | bytes | Path] = [tree, libraries, _PREPARE]
    state = snapshot.prepared_state(built, OPTIONS, "agent", inputs, lambda machine: _prepare(machine, tree, libraries))
    return Machine(built, OPTIONS, state=state, reach={PORT: port})


def _prepare(machine: Machine, tree: bytes, libraries: bytes) -> None:
    say("installing kmodd and its agent in the machine")
    machine.unpack(tree, snapshot.SOURCE)
    machine.unpack(libraries, LIBRARIES)
    machine.run(["sh", "-c", _PREPARE], timeout=600, check=True)


def _libraries(*names: str) -> bytes:
    """What `make install-agent-deps` fetches, from those that the tests themselves run with: the machine cannot reach PyPI.

    It has the same Python, which the compiled ones among them need.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in sorted(_needed(names)):
            made = distribution(name)
            for path in sorted(made.files or (), key=str):
                content = made.locate_file(path)
                if ".." in path.parts or "__pycache__" in path.parts:
                    continue  # programs of its own, and what is compiled again
                data = content.read_bytes()  # type: ignore[attr-defined] # a path, as every distribution on a disk has
                member = tarfile.TarInfo(str(path))
                member.size, member.mode = len(data), 0o644
                archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _needed(names: tuple[str, ...]) -> set[str]:
    found: set[str] = set()
    queue = list(names)
    while queue:
        name = re.sub(r"[-_.]+", "-", queue.pop()).lower()
        if name in found:
            continue
        try:
            requires = distribution(name).requires or []
        except PackageNotFoundError:
            continue  # for another platform or an extra
        found.add(name)
        queue += [re.split(r"[\s;<>=!~(\[]", line, maxsplit=1)[0] for line in requires if "extra ==" not in line]
    return found
