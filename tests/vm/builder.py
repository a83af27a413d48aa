"""A root of the suite in which things are built for it, with its own compiler, C library and packaging tools."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tests.vm import cache, host, privilege, rootfs, suite
from tests.vm.progress import say

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_UNPACK = r"""#!/bin/sh
set -eu
root=$1 archive=$2
# In a user namespace nobody makes device nodes: mmdebstrap mounts those of this machine.
[ "$MMDEBSTRAP_MODE" = root ] && without= || without='--exclude=./dev/*'
tar -C "$root" $without -xpf "$archive"
"""
# mmdebstrap has mounted /proc, which objtool of newer kernels reads.
_BUILD = r"""#!/bin/sh
set -eu
root=$1 inputs=$2 script=$3 out=$4
cp -r --preserve=mode,links,timestamps "$inputs/." "$root/"
cp "$script" "$root/build-script"
mkdir "$root/out"
chroot "$root" sh -eu /build-script >&2
cp -r "$root/out/." "$out/"
"""


def run(packages: Sequence[str], script: str, inputs: Mapping[str, Path], target: Path) -> None:
    """Run a shell script in a root with these packages; what it leaves in ``/out`` is then in the new folder ``target``.

    ``inputs`` says which files and folders of this machine are where in the root.
    """
    archive = _root(packages)
    with privilege.scratch() as work:
        out = work / "out"
        out.mkdir()
        out.chmod(0o777)
        for place, source in inputs.items():
            copy = work / "inputs" / place.lstrip("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, copy, symlinks=True, dirs_exist_ok=True)
            else:
                shutil.copy(source, copy)
        # In a user namespace a private cache cannot be entered.
        shutil.copyfile(archive, work / "root.tar")
        unpack, build = rootfs.script(work / "unpack", _UNPACK), rootfs.script(work / "build", _BUILD)
        rootfs.script(work / "script", script)
        hooks = [
            f'--setup-hook={unpack} "$1" {work / "root.tar"}',
            f'--customize-hook={build} "$1" {work / "inputs"} {work / "script"} {out}',
        ]
        command = [*privilege.mmdebstrap(), "--quiet", "--variant=custom", "--skip=setup,update,cleanup", *hooks]
        host.run([*command, "--format=null", "", "/dev/null"])
        shutil.copytree(out, target)


def _root(packages: Sequence[str]) -> Path:
    """A root with these packages, as a tar file."""
    chosen = suite.chosen()

    def make(folder: Path) -> None:
        host.install_missing()
        say(f"fetching what builds for {chosen.title}: {' '.join(packages)}")
        command = [*privilege.mmdebstrap(), "--quiet", "--variant=apt", *rootfs.arguments(packages), chosen.name]
        with privilege.scratch() as work:
            host.run([*command, str(work / "root.tar"), *rootfs.sources()])
            shutil.copyfile(work / "root.tar", folder / "root.tar")

    key = cache.digest([*packages, Path(__file__), Path(rootfs.__file__)])
    return cache.entry(chosen.kind("builder"), key, make) / "root.tar"
