# SPDX-License-Identifier: LGPL-2.1-or-later
"""The real modprobe, below a shim that answers for the kernel and writes the calls down."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kmodd.kernel.modprobe.modprobe_d import DIRECTORIES
from kmodd.model import Verb
from tests.conformance.kernel_arguments import last_values
from tests.conformance.scenario import Configuration, Question
from tests.kernel.fakeroot import RELEASE

_SHIM = Path(__file__).parent / "shim.c"
Parameters = tuple[tuple[bytes, bytes | None], ...]


@dataclass(frozen=True)
class Done:
    """One thing that modprobe did."""

    kind: str
    """`insert`, `remove` or `command`."""
    name: str
    parameters: Parameters = ()
    text: str = ""
    """The command."""
    refused: bool = False
    """The kernel or the command said no."""


@dataclass(frozen=True)
class Answer:
    """What modprobe did and how it ended."""

    done: tuple[Done, ...]
    status: int
    """Exit status; negative when it crashed, and then there is no answer."""

    @property
    def steps(self) -> tuple[Done, ...]:
        """What took effect: a call that failed changed nothing."""
        return tuple(step for step in self.done if not step.refused)


def build_shim(folder: Path) -> Path:
    """Compile the shim to a new name: a run that uses an older one goes on with it."""
    folder.mkdir(parents=True, exist_ok=True)
    library = Path(tempfile.mkdtemp(dir=folder)) / "shim.so"
    command = ["gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(library), str(_SHIM), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    return library


class Modprobe:
    """Asks one modprobe program about the tree below `root`."""

    def __init__(
        self, program: tuple[str, ...], shim: Path, root: Path, state: Path, needs: Mapping[str, tuple[str, ...]]
    ) -> None:
        """`program` ends where modprobe's own arguments begin."""
        directories = [argument for name in DIRECTORIES for argument in ("-C", str(root / name))]
        self._command = [*program, "-d", str(root), "-S", RELEASE, *directories]
        self._state = state
        self._environment = {
            "LD_PRELOAD": str(shim),
            "SHIM_STATE": str(state),
            "LC_ALL": "C",
            "PATH": "/usr/sbin:/usr/bin",
        }
        self._needs = needs
        (state / "needs").mkdir(parents=True, exist_ok=True)
        for name, used in needs.items():
            (state / "needs" / name).write_text("".join(f"{need}\n" for need in used))

    def ask(self, question: Question, configuration: Configuration, refused_by_kernel: tuple[str, ...] = ()) -> Answer:
        """Run it."""
        self._prepare(configuration, refused_by_kernel)
        verb = ["-r"] if question.verb is Verb.UNLOAD else []
        done = subprocess.run(
            [
                *self._command,
                "-q",
                *verb,
                "--",
                question.name,
                *(f"{key}={value}" for key, value in question.parameters),
            ],
            env=self._environment,
            capture_output=True,
        )
        log = self._state / "log"
        records = log.read_bytes().split(b"\x1e")[:-1] if log.exists() else []
        return Answer(tuple(map(_record, records)), done.returncode)

    def _prepare(self, configuration: Configuration, refused_by_kernel: tuple[str, ...]) -> None:
        (self._state / "log").unlink(missing_ok=True)
        (self._state / "cmdline").write_bytes(os.fsencode(configuration.command_line + "\n"))
        (self._state / "blacklist").write_text("".join(f"{name}\n" for name in refused_by_kernel))
        shutil.rmtree(self._state / "module", ignore_errors=True)
        (self._state / "module").mkdir()
        for name in configuration.loaded:
            users = [user for user in configuration.loaded if name in self._needs.get(user, ())]
            folder = self._state / "module" / name
            folder.mkdir()
            (folder / "initstate").write_text("live\n")
            (folder / "refcnt").write_text(f"{len(users)}\n")


def _record(record: bytes) -> Done:
    kind, result, name, text = record.split(b"\x1f", 3)
    if kind == b"command":
        return Done("command", name.decode(), text=text.decode("utf-8", "replace"), refused=result != b"0")
    parameters = tuple(last_values(text)) if kind == b"insert" else ()
    return Done(kind.decode(), name.decode(), parameters, refused=result != b"0")
