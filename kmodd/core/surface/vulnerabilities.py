# SPDX-License-Identifier: LGPL-2.1-or-later
"""Records of vulnerabilities, and what each is to the installed kernels.

A record is read from responses.d, or made from what a client read in a record of the kernel's CNA. A verdict needs the version of a
kernel, which distributions write into its text, and the series of the record. Corrections that a distribution backports are not
seen, so an older version with a correction counts as affected; what is not known counts as unknown, never as fixed.
"""

import re
from collections.abc import Iterable, Mapping
from functools import partial

from kmodd.config.section import Section
from kmodd.core.surface.resolution import Resolver
from kmodd.errors import Evidence, InvalidArgs, ModuleTreeMissing
from kmodd.kernel.ports import Facts, InstalledKernels, ModuleIndex
from kmodd.model.settings import Document
from kmodd.model.surface import KernelReport, KernelVersion, Placement, Verdict, Version, Vulnerability
from kmodd.names import ModuleName, canonical, is_cve, parse_module, parse_source_file, response_id
from kmodd.patterns import example

_KEYS = (
    "title",
    "modules",
    "routes",
    "breaks",
    "notes",
    "fixed",
    "unaffected-from",
    "unaffected-before",
    "image-files",
    "initcalls",
)
_VERSION = re.compile(r"(\d{1,3})\.(\d{1,3})(?:\.(\d{1,5}))?")
_INITCALL = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
# The package's version follows in the text that Debian's kernels have, whose release has only the ABI's: 6.1.0-31-amd64.
_DEBIAN = re.compile(r"\bDebian (\d{1,3}\.\d{1,3}(?:\.\d{1,5})?)-[0-9A-Za-z.+~]+(?= |$)")
_DEBIAN_BUILDER = "(debian-kernel@lists.debian.org)"
_KERNEL_ORG = re.compile(r"\d{1,3}\.\d{1,3}\.\d{1,5}")
REQUESTS_SHOWN = 16
"""Names and aliases of one module that are listed where modprobe would load it."""


def parse_version(text: str) -> Version:
    """`6.1.170` or `7.0`; ValueError."""
    match = _VERSION.fullmatch(text)
    if match is None:
        raise ValueError("a version of the kernel has two or three numbers, such as 6.1.170")
    return int(match[1]), int(match[2]), int(match[3] or 0)


def spelled(version: Version) -> str:
    """As kernel.org writes it."""
    return ".".join(map(str, version if version[2] else version[:2]))


def kernel_version(release: str, text: str) -> KernelVersion:
    """The upstream version of a kernel from what `uname -rv` prints for it; unknown for kernels with further corrections.

    Known of Debian's own kernels, which follow the stable series, and of those of kernel.org, whose release is the version.
    """
    if text.partition(" ")[0] == release:
        match = _DEBIAN.search(text.partition("#")[2])
        if match is not None and _DEBIAN_BUILDER in text:
            return KernelVersion(match[0], parse_version(match[1]))
    if _KERNEL_ORG.fullmatch(release):
        return KernelVersion(release, parse_version(release))
    return KernelVersion()


def judge(
    record: Vulnerability, version: KernelVersion, placements: Mapping[ModuleName, Placement]
) -> tuple[Verdict, str]:
    """The verdict about one kernel, and why, as a clause."""
    if version.upstream is not None:
        verdict, because = _by_version(record, version.upstream)
        if verdict in (Verdict.FIXED, Verdict.UNAFFECTED):
            return verdict, because
    else:
        verdict, because = Verdict.UNKNOWN, "its upstream version is not known"
    if all(placement is Placement.ABSENT for placement in placements.values()):
        if record.image_files:
            return Verdict.UNKNOWN, f"it has none of the modules, but {record.image_files[0]} may be part of its image"
        return Verdict.ABSENT, "it has none of the modules, neither as files nor in its image"
    return verdict, because


def _by_version(record: Vulnerability, version: Version) -> tuple[Verdict, str]:
    if record.unaffected_from is not None and version >= record.unaffected_from:
        return Verdict.FIXED, f"{spelled(record.unaffected_from)} and later versions are corrected"
    if record.unaffected_before is not None and version < record.unaffected_before:
        return Verdict.UNAFFECTED, f"versions before {spelled(record.unaffected_before)} are not affected"
    series = [fixed for fixed in record.fixed if fixed[:2] == version[:2]]
    if not series:
        if not record.fixed:
            return Verdict.UNKNOWN, "no corrected version is known"
        return Verdict.UNKNOWN, f"the record has no corrected version of the series {version[0]}.{version[1]}"
    # Of several in one series all corrections are needed.
    first = max(series)
    if version >= first:
        return Verdict.FIXED, f"corrected in {spelled(first)}"
    return Verdict.AFFECTED, f"{spelled(version)} is before {spelled(first)}, which is corrected"


def read_records(documents: Iterable[Document]) -> Mapping[str, Vulnerability]:
    """The records of responses.d by their id; Conflict names file, line and key of the first error."""
    records: dict[str, Vulnerability] = {}
    for document in documents:
        top = Section(document)
        top.only(("response",))
        table = top.table("response")
        if table is None:
            continue
        for key, entry in table.tables():
            if not is_cve(key):
                table.refuse(key, "a response is named by its CVE, such as CVE-2026-31431")
            if key in records:
                table.refuse(key, f"{key} is already described in {records[key].file}")
            records[key] = _record(key, entry)
    return records


def _record(key: str, entry: Section) -> Vulnerability:
    entry.only(_KEYS)
    modules = tuple(entry.parsed("modules", partial(parse_module, name)) for name in entry.texts("modules"))
    if not modules:
        entry.refuse("modules", "modules must name at least one module")
    return Vulnerability(
        key,
        tuple(dict.fromkeys(modules)),
        title=entry.text("title", ""),
        routes=entry.texts("routes", ()),
        breaks=entry.text("breaks", ""),
        notes=entry.text("notes", ""),
        fixed=tuple(_version(entry, "fixed", text) for text in entry.texts("fixed", ())),
        unaffected_from=_optional(entry, "unaffected-from"),
        unaffected_before=_optional(entry, "unaffected-before"),
        image_files=entry.texts("image-files", ()),
        initcalls=tuple(_initcall(entry, text) for text in entry.texts("initcalls", ())),
        file=entry.file,
    )


def _version(entry: Section, key: str, text: str) -> Version:
    try:
        return parse_version(text)
    except ValueError as error:
        raise entry.error(str(error), key) from None


def _optional(entry: Section, key: str) -> Version | None:
    text = entry.text(key, "")
    return _version(entry, key, text) if text else None


def _initcall(entry: Section, text: str) -> str:
    if _INITCALL.fullmatch(text) is None:
        entry.refuse("initcalls", "an initcall is the name of a function")
    return text


def given_record(
    key: str,
    modules: Iterable[str],
    *,
    files: Iterable[str] = (),
    fixed: Iterable[str] = (),
    unaffected_from: str = "",
    unaffected_before: str = "",
) -> Vulnerability:
    """A record that a client read elsewhere; InvalidArgs. `files` are source files, whose modules the caller has to find."""
    if key and not is_cve(key):
        raise InvalidArgs("a response is named by its CVE, such as CVE-2026-31431", argument="id")
    names = tuple(dict.fromkeys(map(parse_module, modules)))
    sources = tuple(dict.fromkeys(map(parse_source_file, files)))
    return Vulnerability(
        key or response_id(names),
        names,
        fixed=tuple(map(_given_version, fixed)),
        unaffected_from=_given_version(unaffected_from) if unaffected_from else None,
        unaffected_before=_given_version(unaffected_before) if unaffected_before else None,
        image_files=sources,
    )


def _given_version(text: str) -> Version:
    try:
        return parse_version(text)
    except ValueError as error:
        raise InvalidArgs(str(error), argument="options") from None


def assess(record: Vulnerability, installed: InstalledKernels, facts: Facts) -> tuple[KernelReport, ...]:
    """One report for each installed kernel, the oldest first; ModuleTreeMissing where there is none. Blocking: use a thread."""
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
        loading = {name: _loading(resolver, name, texts) for name, texts in requests.items()}
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
        resolution = resolver.load(request)
        if module in resolution.inserted or module in resolution.commands:
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
