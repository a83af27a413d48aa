# SPDX-License-Identifier: LGPL-2.1-or-later
"""Custom modules: the facts of an examined file, and the versions in the store."""

from enum import StrEnum

from kmodd.fast_dataclass import dataclass
from kmodd.names import ModuleName


class IndexNotMadeError(Exception):
    """A kernel's module index could not be rebuilt, the previous one stays in effect; the message is one clause with the reason."""


class FileFault(StrEnum):
    """Why a file cannot be taken for a module."""

    NOT_A_FILE = "not-a-file"
    UNREADABLE = "unreadable"
    EMPTY = "empty"
    TOO_LARGE = "too-large"
    UNPACKS_TOO_LARGE = "unpacks-too-large"
    NO_SPACE = "no-space"
    NOT_UNPACKABLE = "not-unpackable"
    UNSUPPORTED = "unsupported-compression"
    NOT_ELF = "not-elf"
    NOT_A_MODULE = "not-a-module"
    TRUNCATED = "truncated"
    DAMAGED = "damaged"
    NO_NAME = "no-name"
    NAMES_DIFFER = "names-differ"
    BAD_SIGNATURE_BLOCK = "bad-signature-block"
    TIMED_OUT = "timed-out"
    PARSER_DIED = "parser-died"


LIMITS = "see kmodd.toml(5) for the limits"
MAKE_ROOM = f"kmodctl store remove makes room, and {LIMITS}"
"""What to do where the store takes no more."""
ENROL = (
    "sign the module with `kmodctl store import --sign KEY CERT FILE`; the kernel must trust the certificate: "
    "`mokutil --import CERT` (in DER form), then reboot and confirm"
)
"""How an own signing key gets into the kernel's keyring .machine or .platform through the boot loader (mokutil(1))."""


@dataclass(frozen=True, slots=True)
class KernelMatch:
    """How a module fits a kernel, as far as that kernel's own files and symbols tell."""

    release: str = ""
    """The kernel looked at: the one it was built for where that is installed, else the running one."""
    tree: bool = False
    """That kernel has a module tree."""
    vermagic: str = ""
    """Of that kernel's own modules; empty where it has none to look at."""
    machine: int = 0
    """e_machine of that kernel's own modules, with the ELF class and byte order above it; 0 where unknown."""
    unknown: tuple[str, ...] = ()
    """Symbols that neither the kernel nor any module of it exports; empty if the kernel's symbols are unknown."""
    mismatched: tuple[str, ...] = ()
    """Symbols that the kernel has with another checksum (modversions)."""
    unchecked: int = 0
    """Symbols whose checksum nothing on this machine tells."""


@dataclass(frozen=True, slots=True)
class Examination:
    """What the parser found in a file. All texts come from the file: printable, at most 1 KiB, but otherwise anything."""

    fault: str = ""
    """A `FileFault`; empty for a whole module."""
    name: str = ""
    machine: int = 0
    """As `KernelMatch.machine`."""
    version: str = ""
    description: str = ""
    vermagic: str = ""
    depends: tuple[str, ...] = ()
    softdeps: tuple[str, ...] = ()
    """Modules of its soft dependencies, before and after it."""
    versions: bool = False
    """It carries checksums of the symbols it uses."""
    signed: bool = False
    signer: str = ""
    unpacked: bool = False
    """It was compressed; the facts are those of the unpacked file."""
    match: KernelMatch = KernelMatch()


@dataclass(frozen=True, slots=True)
class StoredModule:
    """One version in the store."""

    name: ModuleName
    version: str
    kernel: str
    sha256: str
    """Of the file as the kernel loads it, unpacked."""
    size: int
    description: str = ""
    signer: str = ""
    signed: bool = False
    vermagic: str = ""
    imported_at: int = 0
    uid: int | None = None
    """Who imported it."""
    needs: tuple[str, ...] = ()
    """Modules that it depends on, or names as soft dependencies."""
    active: bool = False
    """It lies where modprobe finds it."""
