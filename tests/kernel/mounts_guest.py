# SPDX-License-Identifier: LGPL-2.1-or-later
"""Makes mounts and copies of them in real namespaces, says which ones stay, unmounts the original, and asks the kernel.

Run by `unshare --user --map-root-user --mount --pid --fork --mount-proc`, so that process 1 is the one of this namespace.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from kmodd.kernel.users.mount import Mounts
from kmodd.kernel.users.tasks import Budget, Tasks

SOURCE = "the-original"


def numbers(pid: int) -> set[int]:
    """The mounts of the file system in question that a process sees."""
    lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    return {int(line.split()[0]) for line in lines if line.partition(" - ")[2].split()[1] == SOURCE}


def main() -> None:
    """`scenarios` is a mapping of names to [options of unshare, script]; answers said, left and covered for each."""
    folder, scenarios = Path(sys.argv[1]), json.loads(sys.argv[2])
    subprocess.run(["mount", "-t", "tmpfs", "base", folder], check=True)
    subprocess.run(["mount", "--make-rshared", "/"], check=True)
    point = folder / "a/m"
    point.mkdir(parents=True)
    (folder / "b").mkdir()
    (folder / "private").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", SOURCE, point], check=True)
    (point / "state").mkdir()
    children = {}
    for name, (options, script) in scenarios.items():
        command = ["unshare", "--mount", *options, "sh", "-e", "-c", f"{script}\necho made\nread _"]
        environment = {**os.environ, "M": str(point), "D": str(folder)}
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert child.stdout is not None
        assert child.stdout.readline() == b"made\n", name
        children[name] = child
    before = {name: numbers(child.pid) for name, child in children.items()}
    told = Mounts(Tasks(Path("/"), Budget()), lambda type_: frozenset({"x"} if type_ == "tmpfs" else ()), Budget()).all
    said = {name: sorted(_point(m.point, folder) for m in told if m.task.pid == child.pid and m.source == SOURCE)
            for name, child in children.items()}  # fmt: skip
    covered = {name: any(m.covered for m in told if m.task.pid == child.pid and m.source == SOURCE)
               for name, child in children.items()}  # fmt: skip
    subprocess.run(["umount", point], check=True)
    left = {}
    for name, child in children.items():
        kept = numbers(child.pid) & before[name]
        lines = Path(f"/proc/{child.pid}/mountinfo").read_text().splitlines()
        left[name] = sorted(_point(line.split()[4], folder) for line in lines if int(line.split()[0]) in kept)
        child.communicate(b"\n")
    json.dump({"said": said, "left": left, "covered": covered}, sys.stdout)


def _point(point: str, folder: Path) -> str:
    return str(Path(point).relative_to(folder))


if __name__ == "__main__":
    main()
