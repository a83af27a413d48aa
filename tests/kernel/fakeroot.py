# SPDX-License-Identifier: LGPL-2.1-or-later
"""Builds a root folder with a module tree and modprobe.d files, indexed by the machine's own depmod.

A scenario is a folder below tests/rootfs with text files only: everything in it is copied, and `modules.txt` says which
modules to make, one a line: `PATH KEY=VALUE …`, with `import=` and `export=` for symbols, `signer=` for a signature,
and spaces in values written as `%20`. A line that starts with `builtin` makes a module that is built in.
"""

import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kmodd.kernel.modules.index import LibkmodIndex
from tests.kernel.elf import module_file, pkcs7_message, sign

RELEASE = "6.1.0-test"
SCENARIOS = Path(__file__).parent.parent / "rootfs"


@dataclass(frozen=True)
class FakeModule:
    """One module to make. A dependency is made by importing a symbol that another module exports."""

    name: str
    """As in the file name: `snd-pcm` makes snd-pcm.ko."""
    depends: tuple[str, ...] = ()
    softdep: str = ""
    aliases: tuple[str, ...] = ()
    parameters: tuple[tuple[str, str, str], ...] = ()
    """(name, type, description); an empty type or description is left out."""
    info: tuple[str, ...] = ()
    """Further `key=value` strings."""
    signer: str = ""
    folder: str = "kernel/drivers"
    suffix: str = ".ko"
    """`.ko.gz`, `.ko.xz` and `.ko.zst` are compressed."""
    builtin: bool = False
    exports: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    holds: str = ""
    """Name of the module in the file, where that was renamed; without one the file has no struct module."""

    def strings(self) -> list[str]:
        """What stands in .modinfo."""
        name = self.holds or self.name.replace("-", "_")
        strings = [f"alias={alias}" for alias in self.aliases]
        strings += [f"softdep={self.softdep}"] if self.softdep else []
        for parameter, type_, description in self.parameters:
            strings += [f"parm={parameter}:{description}"] if description else []
            strings += [f"parmtype={parameter}:{type_}"] if type_ else []
        strings += [f"depends={','.join(self.depends)}", "intree=Y", f"name={name}"]
        return [*self.info, *strings, f"vermagic={RELEASE} SMP preempt mod_unload modversions "]

    def content(self) -> bytes:
        """The file's bytes, before compression."""
        exports = (f"symbol_of_{self.name.replace('-', '_')}", *self.exports)
        imports = (*(f"symbol_of_{needed.replace('-', '_')}" for needed in self.depends), *self.imports)
        data = module_file(self.strings(), exports=exports, imports=imports, this_module=self.holds)
        return sign(data, pkcs7_message(self.signer)) if self.signer else data


@dataclass
class FakeRoot:
    """A root folder. Everything is made by `build`, which may be called again after a change."""

    root: Path
    modules: list[FakeModule] = field(default_factory=list)
    files: Mapping[str, str] = field(default_factory=dict)
    """Further text files by path below the root, such as `etc/modprobe.d/a.conf`."""
    release: str = RELEASE

    @property
    def tree(self) -> Path:
        """lib/modules/RELEASE."""
        return self.root / "lib/modules" / self.release

    def build(self) -> "FakeRoot":
        """Write everything and run depmod."""
        self.tree.mkdir(parents=True, exist_ok=True)
        for module in self.modules:
            if not module.builtin:
                self.put(module)
        built = [module for module in self.modules if module.builtin]
        self._write("modules.order", "")
        self._write("modules.builtin", "".join(f"{module.folder}/{module.name}.ko\n" for module in built))
        strings = [f"{m.name.replace('-', '_')}.{string}\0" for m in built for string in m.strings()]
        self._write("modules.builtin.modinfo", "".join(strings))
        for name, text in self.files.items():
            self.write(name, text)
        self.depmod()
        return self

    def put(self, module: FakeModule) -> Path:
        """Write one module's file, compressed as its suffix says."""
        folder = self.tree / module.folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{module.name}{module.suffix}"
        path.write_bytes(compressed(module.content(), module.suffix))
        return path

    def write(self, name: str, text: str) -> Path:
        """Write a text file below the root."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def depmod(self) -> None:
        """Make the indexes anew."""
        subprocess.run(["depmod", "-b", self.root, self.release], check=True, capture_output=True)

    def index(self, command_line: str = "") -> LibkmodIndex:
        """Open the index of this root."""
        return LibkmodIndex(self.root, self.release, command_line=command_line)

    def _write(self, name: str, text: str) -> None:
        (self.tree / name).write_text(text)


def compressed(data: bytes, suffix: str) -> bytes:
    """Compress as the suffix says: `.gz` and `.xz` by Python, `.zst` by the zstd program."""
    if suffix.endswith(".gz"):
        import gzip

        return gzip.compress(data, mtime=0)
    if suffix.endswith(".xz"):
        import lzma

        return lzma.compress(data, check=lzma.CHECK_CRC32)
    if suffix.endswith(".zst"):
        # With its size, as in files that the kernel's build compresses: libkmod 34 opens no other.
        command = ["zstd", "-q", "-c", f"--stream-size={len(data)}"]
        return subprocess.run(command, input=data, check=True, capture_output=True).stdout
    return data


def scenario(name: str, into: Path) -> FakeRoot:
    """Copy a folder of tests/rootfs and build it."""
    source = SCENARIOS / name
    shutil.copytree(source, into, symlinks=True, dirs_exist_ok=True)
    lines = (source / "modules.txt").read_text().splitlines()
    return FakeRoot(into, [_parse(line) for line in lines if line and not line.startswith("#")]).build()


def _parse(line: str) -> FakeModule:
    path, *words = line.split()
    builtin = path == "builtin"
    if builtin:
        path, *words = words
    folder, _, file = path.rpartition("/")
    name, dot, suffix = file.partition(".")
    pairs = [word.replace("%20", " ").partition("=")[::2] for word in words]

    def several(key: str) -> tuple[str, ...]:
        return tuple(value for found, value in pairs if found == key)

    def single(key: str) -> str:
        return next(iter(several(key)), "")

    known = ("depends", "softdep", "alias", "parameter", "signer", "import", "export")
    parameters = (tuple((value + "::").split(":")[:3]) for value in several("parameter"))
    return FakeModule(
        name,
        depends=several("depends"),
        softdep=single("softdep"),
        aliases=several("alias"),
        parameters=tuple((name, type_, text) for name, type_, text in parameters),
        info=tuple(f"{key}={value}" for key, value in pairs if key not in known),
        signer=single("signer"),
        folder=folder,
        suffix=dot + suffix,
        builtin=builtin,
        exports=several("export"),
        imports=several("import"),
    )


def root_of(into: Path, *modules: FakeModule, files: Mapping[str, str] | None = None) -> FakeRoot:
    """Build a root with these modules and text files."""
    return FakeRoot(into, list(modules), files or {}).build()


def names(modules: Iterable[str]) -> list[str]:
    """Plain strings, for comparisons that read well."""
    return [str(name) for name in modules]
