# SPDX-License-Identifier: LGPL-2.1-or-later
"""The programs of a real Kubernetes API: those of $KUBEBUILDER_ASSETS, those of the PATH, or built once into the cache.

What is built is kube-apiserver 1.20.2, from Debian 12's source package with Debian 12's compiler, and etcd from Debian 13's package:
nothing comes from outside Debian. It takes eleven minutes of a processor and 5 GB while it builds. Today's machinery for custom
resources (apiextensions-apiserver) is used where it is there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.vm import cache, host
from tests.vm.progress import say

PROGRAMS = ("etcd", "kube-apiserver")
EXTENSIONS = "apiextensions-apiserver"
KIND = "kubernetes-1.20.2"
SOURCE = "kubernetes"
SUITE = "bookworm"
# rsync and its libraries, which the makefiles call, are not installed but unpacked. Debian's reflect2 takes the place of the vendored
# one, version 1.0.1 of which crashes with Go 1.18 and newer at the first custom resource.
TOOLS = (
    "golang-1.19-go",
    "golang-1.19-src",
    "golang-github-modern-go-reflect2-dev",
    "rsync",
    "libpopt0",
    "libxxhash0",
)
ETCD_SUITE = "trixie"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_RSYNC = """#!/bin/sh
LD_LIBRARY_PATH={root}/usr/lib/x86_64-linux-gnu exec {root}/usr/bin/rsync "$@"
"""


def program(name: str) -> Path | None:
    """Where a program is; None where it is not, and what is built is not there yet."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    found = shutil.which(name)
    places = [*([Path(assets, name)] if assets else []), *([Path(found)] if found else []), _folder() / name]
    return next((place for place in places if os.access(place, os.X_OK)), None)


def provide() -> None:
    """Build what is not there."""
    if all(program(name) for name in PROGRAMS):
        return
    say("building a Kubernetes API server for the tests; this happens once, and takes some ten minutes")
    cache.entry(KIND, _key(), _build)


def _key() -> str:
    # Not this file's own text: a comment is no reason to build for ten minutes.
    return cache.digest([SOURCE, SUITE, *TOOLS, ETCD_SUITE])


def _folder() -> Path:
    return cache.cache_root() / f"{KIND}-{_key()}"


def _build(folder: Path) -> None:
    with TemporaryDirectory(dir=folder.parent) as name:
        work = Path(name)
        root, commands = work / "root", work / "bin"
        host.unpack_packages(SUITE, TOOLS, root)
        host.unpack_packages(ETCD_SUITE, ["etcd-server"], root)
        commands.mkdir()
        rsync = commands / "rsync"
        rsync.write_text(_RSYNC.format(root=root))
        rsync.chmod(0o755)
        source = _source(work)
        vendored = source / "vendor/github.com/modern-go/reflect2"
        for file in [*vendored.glob("*.go"), *vendored.glob("*.s")]:
            file.unlink()
        replacement = root / "usr/share/gocode/src/github.com/modern-go/reflect2"
        for file in [*replacement.glob("*.go"), *replacement.glob("*.s")]:
            if not file.name.endswith("_test.go"):
                shutil.copy(file, vendored)
        place = source / ".go/src/k8s.io"
        place.mkdir(parents=True)
        (place / "kubernetes").symlink_to("../../..")
        go = root / "usr/lib/go-1.19"
        environment = {
            "GOPATH": str(source / ".go"),
            "GOROOT": str(go),
            "PATH": f"{commands}:{go}/bin:{host.SEARCH_PATH}",
            "HOME": str(work),
            "CGO_ENABLED": "0",
            "GOPROXY": "off",
            "GOFLAGS": "",
        }
        host.run(["nice", "make", "WHAT=cmd/kube-apiserver"], cwd=str(source), env=environment)
        shutil.copy2(source / "_output/local/bin/linux/amd64/kube-apiserver", folder)
        shutil.copy2(root / "usr/bin/etcd", folder)
        # The modules of Go are read-only, which TemporaryDirectory would stumble over.
        subprocess.run(["chmod", "-R", "u+w", str(work)], check=True)
    for built in PROGRAMS:
        host.run([str(folder / built), "--version"])


def _source(work: Path) -> Path:
    (work / "lists/partial").mkdir(parents=True)
    (work / "cache/archives/partial").mkdir(parents=True)
    (work / "sources.list").write_text(f"deb-src [signed-by={_KEYRING}] {host._mirror()} {SUITE} main\n")
    options = {
        "Dir::Etc::SourceList": work / "sources.list",
        "Dir::Etc::SourceParts": "-",
        "Dir::State::Lists": work / "lists",
        "Dir::Cache": work / "cache",
        "Acquire::Languages": "none",
    }
    apt = ["apt-get", "-qq", *(word for key, value in options.items() for word in ("-o", f"{key}={value}"))]
    host.run([*apt, "update"])
    host.run([*apt, "source", "--download-only", f"{SOURCE}/{SUITE}"], cwd=str(work))
    (description,) = work.glob("kubernetes_*.dsc")
    folder = work / "source"
    host.run(["dpkg-source", "--no-check", "-x", description.name, str(folder)], cwd=str(work))
    return folder


if __name__ == "__main__":
    provide()
