# SPDX-License-Identifier: LGPL-2.1-or-later
"""Checks whether a custom module fits a kernel: pure functions from facts of its file to an error.

Text of the file never reaches an error, except its name and symbols in the form that a compiler makes.
"""

import re

from kmodd.errors import (
    BadModule,
    BadSignature,
    Evidence,
    KmoddError,
    LimitsExceeded,
    Lockdown,
    Shadows,
    TimedOut,
    UnknownSymbol,
    WrongKernel,
)
from kmodd.model import KernelFacts
from kmodd.model.store import ENROL, LIMITS, Examination, FileFault, StoredModule
from kmodd.names import ModuleName, is_module_name, is_release

NAMED = 4
"""Symbols that a sentence names; the others are counted."""
_SYMBOL = re.compile(r"[A-Za-z_.$][A-Za-z0-9_.$]{0,127}")

_FAULTS: dict[str, tuple[type[KmoddError], str]] = {
    FileFault.NOT_A_FILE: (BadModule, "the descriptor is not a regular file"),
    FileFault.UNREADABLE: (BadModule, "the file cannot be read completely"),
    FileFault.EMPTY: (BadModule, "the file is empty"),
    FileFault.NOT_UNPACKABLE: (BadModule, "the file is damaged: its compressed data does not unpack"),
    FileFault.UNSUPPORTED: (BadModule, "the file is compressed in a format this machine cannot unpack"),
    FileFault.NOT_ELF: (BadModule, "the file is not an ELF file"),
    FileFault.NOT_A_MODULE: (BadModule, "the file is an ELF file but not a kernel module"),
    FileFault.TRUNCATED: (BadModule, "the file is truncated: it ends before the size in its header"),
    FileFault.DAMAGED: (BadModule, "the file has a damaged ELF structure"),
    FileFault.NO_NAME: (BadModule, "the module has no usable name"),
    FileFault.NAMES_DIFFER: (BadModule, "the module name in .modinfo differs from that in the module"),
    FileFault.PARSER_DIED: (
        BadModule,
        "the file cannot be examined: the parser process exited; see journalctl",
    ),
    FileFault.BAD_SIGNATURE_BLOCK: (BadSignature, "the signature at the end of the file is damaged"),
    FileFault.TIMED_OUT: (TimedOut, "the file could not be read and examined in time"),
    FileFault.NO_SPACE: (LimitsExceeded, "no space left on the disk for the file"),
}


def check_file(examination: Examination, *, maximum: int, unpacked: int) -> ModuleName:
    """The module's canonical name; raises for what is wrong with the file itself. The limits are in bytes."""
    if examination.fault == FileFault.TOO_LARGE:
        raise LimitsExceeded(f"a module file is at most {maximum >> 20} MiB", evidence=Evidence(hint=LIMITS))
    if examination.fault == FileFault.UNPACKS_TOO_LARGE:
        raise LimitsExceeded(f"a module is at most {unpacked >> 20} MiB when unpacked", evidence=Evidence(hint=LIMITS))
    if examination.fault:
        kind, sentence = _FAULTS[examination.fault]
        raise kind(sentence)
    if not is_module_name(examination.name):
        raise BadModule(_FAULTS[FileFault.NO_NAME][1])
    return ModuleName(examination.name.replace("-", "_"))


def check_kernel(name: ModuleName, examination: Examination) -> str:
    """The kernel's release it is for; raises BadModule, WrongKernel or UnknownSymbol when it would not load there.

    The words of vermagic have to be the same. The first, the release, counts only where the module carries no checksums
    of symbols (same_magic() in kernel/module/version.c); with them a module of a near release may load.
    """
    match = examination.match
    if not match.tree:
        raise WrongKernel(
            f"no modules of kernel {_release(match.release)} to compare {name} with",
            module=name,
            evidence=Evidence(hint="install the kernel that it was built for, then import it"),
        )
    if match.machine and match.machine != examination.machine:
        raise BadModule(f"{name} was built for another architecture than kernel {match.release}", module=name)
    release, _, words = examination.vermagic.partition(" ")
    _, _, expected = match.vermagic.partition(" ")
    built_for = f"{name} was built for kernel {release}" if is_release(release) else f"{name} names no kernel"
    rebuild = Evidence(hint=f"rebuild it against the headers of kernel {match.release}")
    if release != match.release and not examination.versions:
        raise WrongKernel(
            f"{built_for}, which is not installed, and has no symbol versions that would allow another kernel to load it",
            module=name,
            evidence=rebuild,
        )
    if match.vermagic and words.split() != expected.split():
        raise WrongKernel(
            f"{name} was built with other options than kernel {match.release} (SMP, preemption, module versions)",
            module=name,
            evidence=rebuild,
        )
    if match.mismatched:
        raise WrongKernel(
            f"{name} was built against other versions of kernel {match.release}'s symbols: {_symbols(match.mismatched)}",
            module=name,
            evidence=Evidence(hint=rebuild.hint, symbols=match.mismatched),
        )
    if match.unknown:
        raise UnknownSymbol(
            f"{name} needs symbols that neither kernel {match.release} nor its modules provide: {_symbols(match.unknown)}",
            module=name,
            evidence=Evidence(
                hint="import and activate the modules it depends on first, or rebuild it for this kernel",
                symbols=match.unknown,
            ),
        )
    return match.release


def check_signature(name: ModuleName, examination: Examination | StoredModule, facts: KernelFacts) -> None:
    """Raise Lockdown or BadSignature for an unsigned module that the kernel, as it runs now, would never load."""
    if examination.signed:
        return
    if facts.lockdown != "none":
        secure = " under Secure Boot" if facts.secure_boot else ""
        raise Lockdown(
            f"the kernel is locked down{secure} and loads only signed modules, and {name} has no signature",
            module=name,
            evidence=Evidence(hint=ENROL),
        )
    if facts.signature_enforced:
        raise BadSignature(
            f"the kernel loads only signed modules, and {name} has no signature",
            module=name,
            evidence=Evidence(hint=ENROL),
        )


def check_place(name: ModuleName, kernel: str, another: str, *, shadow: bool) -> None:
    """Raise Shadows when the kernel has a module of this name (`another`, see `Trees.another`) and the option is not set."""
    if not another or shadow:
        return
    what = "is built into" if another == "built-in" else "is a module of"
    raise Shadows(
        f"{name} {what} kernel {kernel} already: replacing it requires the option 'shadow'",
        module=name,
        evidence=Evidence(hint="kmodctl store import --shadow"),
    )


def _release(text: str) -> str:
    return text if is_release(text) else "that it was built for"


def _symbols(names: tuple[str, ...]) -> str:
    shown = [name for name in names if _SYMBOL.fullmatch(name)][:NAMED]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more and shown else f"{more} of them" if more else "")
