# SPDX-License-Identifier: LGPL-2.1-or-later
"""Facts about the running kernel that decide whether modules can be loaded, and what its taint means."""

import os
import re
from pathlib import Path

from kmodd.kernel.smallfile import read_bytes, read_text
from kmodd.kernel.trusted_keys import trusted_keys
from kmodd.model import KernelFacts

# Documentation/admin-guide/tainted-kernels.rst: letter and meaning of bits 0 to 18.
_TAINT = (
    ("P", "proprietary module was loaded"),
    ("F", "module was force loaded"),
    ("S", "kernel running on an out of specification system"),
    ("R", "module was force unloaded"),
    ("M", "processor reported a machine check exception"),
    ("B", "bad page referenced or some unexpected page flags"),
    ("U", "taint requested by userspace application"),
    ("D", "kernel died recently, that is there was an oops or a bug"),
    ("A", "ACPI table overridden by user"),
    ("W", "kernel issued warning"),
    ("C", "staging driver was loaded"),
    ("I", "workaround for bug in platform firmware applied"),
    ("O", "externally-built (out-of-tree) module was loaded"),
    ("E", "unsigned module was loaded"),
    ("L", "soft lockup occurred"),
    ("K", "kernel has been live patched"),
    ("X", "auxiliary taint, defined for and used by distributions"),
    ("T", "kernel was built with the struct randomization plugin"),
    ("N", "an in-kernel test has been run"),
)
_SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
_CHOSEN = re.compile(r"\[(\w+)\]")


class ProcFacts:
    """`ports.Facts` on the files below `root`, for the kernel release given or the running one."""

    def __init__(self, root: Path, release: str = "") -> None:
        self._release = release or os.uname().release
        self._root = root
        # Plain texts, made once: this is read for every plan, and a Path costs as much to make as the file to read.
        self._taint = str(root / "proc/sys/kernel/tainted")
        self._lockdown_file = str(root / "sys/kernel/security/lockdown")
        self._enforcement = str(root / "sys/module/module/parameters/sig_enforce")
        self._switch = str(root / "proc/sys/kernel/modules_disabled")
        self._secure_boot_file = str(root / _SECURE_BOOT)
        self._command_line_file = str(root / "proc/cmdline")
        # These two cannot change while a kernel runs.
        self._command_line: str | None = None
        self._secure_boot: bool | None = None
        self._index = str(root / "lib/modules" / self._release / "modules.dep.bin")

    def read(self) -> KernelFacts:
        """Now. A file that is missing means the kernel lacks the feature: no lockdown, no enforcement, no Secure Boot."""
        if self._command_line is None:
            self._command_line = read_text(self._command_line_file)
        if self._secure_boot is None:
            self._secure_boot = self._read_secure_boot()
        taint = read_text(self._taint) or ""
        return KernelFacts(
            release=self._release,
            lockdown=self._lockdown(),
            signature_enforced=read_text(self._enforcement) in {"Y", "1"},
            modules_disabled=read_text(self._switch) == "1",
            secure_boot=self._secure_boot,
            taint=int(taint) if taint.isdecimal() else 0,
            command_line=self._command_line or "",
            tree_present=os.path.isfile(self._index),  # noqa: PTH113 - see above
        )

    def taint_flags(self, taint: int) -> tuple[str, ...]:
        """Each flag set, as `E: unsigned module was loaded`; a bit newer than this table by its number."""
        known = [f"{letter}: {meaning}" for bit, (letter, meaning) in enumerate(_TAINT) if taint >> bit & 1]
        unknown = range(len(_TAINT), taint.bit_length())
        return (*known, *(f"bit {bit}: unknown to this version" for bit in unknown if taint >> bit & 1))

    def trusted_keys(self) -> tuple[str, ...]:
        """Names of the certificates that the kernel holds."""
        return trusted_keys(self._root)

    def _lockdown(self) -> str:
        # `none [integrity] confidentiality`: the one in force is in brackets.
        chosen = _CHOSEN.search(read_text(self._lockdown_file) or "")
        return chosen[1] if chosen else "none"

    def _read_secure_boot(self) -> bool:
        # Four bytes of attributes, then the value.
        content = read_bytes(self._secure_boot_file, 64) or b""
        return len(content) == 5 and content[4] == 1
