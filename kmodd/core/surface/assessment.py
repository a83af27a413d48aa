# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a vulnerability is to each installed kernel, and whether any name or alias loads its modules there. Blocking: use a thread."""

from collections.abc import Iterable, Mapping

from kmodd.core.surface.records import judge, kernel_version
from kmodd.core.surface.resolution import Resolver
from kmodd.errors import Evidence, InvalidArgs, ModuleTreeMissing
from kmodd.kernel.ports import Facts, InstalledKernels, ModuleIndex
from kmodd.model.responses import KernelReport, Placement, Vulnerability
from kmodd.names import ModuleName, canonical
from kmodd.patterns import example

REQUESTS_SHOWN = 16
"""Names and aliases of one module that are listed where modprobe would load it."""


def assess(record: Vulnerability, installed: InstalledKernels, facts: Facts) -> tuple[KernelReport, ...]:
    """One report for each installed kernel, the oldest first; ModuleTreeMissing where there is none."""
    current = facts.read()
    reports = tuple(
        _report(record, release, installed, current.command_line, running=release == current.release)
        for release in installed.releases()
    )
    if not reports:
        raise ModuleTreeMissing("no kernel is installed that has modules")
    return reports


def _report(
    record: Vulnerability, release: str, installed: InstalledKernels, command_line: str, *, running: bool
) -> KernelReport:
    version = kernel_version(release, installed.version_text(release))
    with installed.index(release) as index:
        placements = {name: placement(index, name) for name in record.modules}
        verdict, because = judge(record, version, placements)
        files = tuple(name for name, place in placements.items() if place is Placement.FILE)
        dependents = {name: _dependents(index, name) for name in files}
        requests = {name: requests_of(index, name, (*record.routes, *dependents[name])) for name in files}
        resolver = Resolver(index, command_line)
        loading = {name: _loading(resolver, name, asked) for name, asked in requests.items()}
    images = installed.initramfs_modules(release) if verdict.concerns else None
    return KernelReport(
        release,
        running,
        version,
        verdict,
        because,
        placements,
        {name: opened[:REQUESTS_SHOWN] for name, opened in loading.items() if opened},
        requests=sum(map(len, requests.values())),
        dependents=tuple(sorted({name for names in dependents.values() for name in names} - set(record.modules))),
        initramfs=tuple(name for name in record.modules if images is not None and name in images),
        initramfs_known=images is not None,
    )


def placement(index: ModuleIndex, name: ModuleName) -> Placement:
    """Where a kernel has a module."""
    if index.is_builtin(name):
        return Placement.BUILTIN
    return Placement.FILE if index.exists(name) else Placement.ABSENT


def _dependents(index: ModuleIndex, module: ModuleName) -> tuple[ModuleName, ...]:
    return tuple(name for name in index.available() if module in index.dependencies(name))


def requests_of(index: ModuleIndex, module: ModuleName, further: Iterable[str]) -> tuple[str, ...]:
    """Every request that leads to a module: its name, its aliases, and further ones, such as the names of what needs it."""
    aliases = (example(alias) for alias in index.aliases(module))
    # The kernel spells its requests with `-`, to which libkmod gives the same answer.
    return tuple(dict.fromkeys((module, module.replace("_", "-"), *aliases, *further)))


def _loading(resolver: Resolver, module: ModuleName, requests: Iterable[str]) -> tuple[str, ...]:
    """The requests that load it, or run a command of which it is not known what it loads."""
    opened = []
    for request in requests:
        loading = resolver.load(request)
        if module in loading.inserted or module in loading.commands:
            opened.append(request)
    return tuple(opened)


def modules_of(files: Iterable[str], installed: InstalledKernels) -> Mapping[str, ModuleName]:
    """The modules that are made of one of these source files alone, as far as the installed kernels' trees show it.

    `crypto/algif_aead.c` is the module of that name in `kernel/crypto`. Of what modules of several files are made, only the
    sources of the kernel say.
    """
    wanted = {file: canonical(file.rpartition("/")[2].removesuffix(".c")) for file in files if file.endswith(".c")}
    modules: dict[str, ModuleName] = {}
    for release in installed.releases():
        with installed.index(release) as index:
            for file, name in wanted.items():
                folder = file.rpartition("/")[0]
                if f"/kernel/{folder}/" in index.path(name) and index.path(name).rpartition("/")[0].endswith(
                    f"/{folder}"
                ):
                    modules[file] = name
    return modules


def without_modules(record: Vulnerability) -> InvalidArgs:
    """The error for a record of source files of which no module is known."""
    return InvalidArgs(
        f"no module is known for {', '.join(record.image_files[:3]) or record.id}",
        argument="options",
        evidence=Evidence(hint="name the modules with --module"),
    )
