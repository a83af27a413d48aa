# SPDX-License-Identifier: LGPL-2.1-or-later
"""Facts of the running kernel: lockdown, signature enforcement, taint, trusted keys, and aliases of present devices.

Trusted keys are the X.509 certificates in /proc/keys (crypto/asymmetric_keys/asymmetric_type.c). The list has names but not
the keyring of a key, and root may not verify with these keys: it only serves to name the missing key after the kernel
refused a module. Signatures name the issuer of the certificate, keys the subject; for self-signed certificates both are the
same.
"""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from kmodd.kernel.files import listdir, read_bytes, read_text, readlink, status_if_there, value_if_there
from kmodd.model import KernelFacts
from kmodd.text import shown

KEYS_MAX = 64
_SIZE_MAX = 1 << 20
# Serial, flags, uses, expiry, permissions, uid, gid, type (cut to nine letters), name, key id, algorithm.
_CERTIFICATE = re.compile(r"^(?:\S+\s+){7}asymmetri\s+(.*): [0-9a-f]{8,}: X509\.\S+ ", re.MULTILINE)


def trusted_keys(root: Path) -> tuple[str, ...]:
    """Names of the certificates, each once, safe to show; empty where root may not see them."""
    text = (read_bytes(root / "proc/keys", _SIZE_MAX) or b"").decode("utf-8", "replace")
    names = (shown(name.strip(), 128) for name in _CERTIFICATE.findall(text))
    return tuple(dict.fromkeys(names))[:KEYS_MAX]


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
        self._dmesg_restrict = str(root / "proc/sys/kernel/dmesg_restrict")
        self._switch = str(root / "proc/sys/kernel/modules_disabled")
        self._secure_boot_file = str(root / _SECURE_BOOT)
        self._command_line_file = str(root / "proc/cmdline")
        # These two cannot change while a kernel runs.
        self._command_line: str | None = None
        self._secure_boot: bool | None = None
        self._index = str(root / "lib/modules" / self._release / "modules.dep.bin")

    def read(self) -> KernelFacts:
        """Now. A file that is missing means the kernel lacks the feature: no lockdown, no enforcement, no Secure Boot.

        OSError for one that is there and cannot be read: what it forbids is not known. But the kernel's log counts as
        restricted where dmesg_restrict cannot be read, and Secure Boot as off where the firmware does not answer.
        """
        if self._command_line is None:
            self._command_line = value_if_there(self._command_line_file)
        if self._secure_boot is None:
            self._secure_boot = self._read_secure_boot()
        taint = value_if_there(self._taint) or ""
        index = status_if_there(self._index)
        return KernelFacts(
            release=self._release,
            lockdown=self._lockdown(),
            signature_enforced=value_if_there(self._enforcement) in {"Y", "1"},
            modules_disabled=value_if_there(self._switch) == "1",
            secure_boot=self._secure_boot,
            taint=int(taint) if taint.isdecimal() else 0,
            command_line=self._command_line or "",
            tree_present=index is not None and stat.S_ISREG(index.st_mode),
            log_restricted=read_text(self._dmesg_restrict) != "0",
        )

    def taint_flags(self, taint: int) -> tuple[str, ...]:
        """Each flag set, as `E: unsigned module was loaded`; a bit newer than this table by its number."""
        flags = [f"{letter}: {meaning}" for bit, (letter, meaning) in enumerate(_TAINT) if taint >> bit & 1]
        unknown = range(len(_TAINT), taint.bit_length())
        return (*flags, *(f"bit {bit}: unknown to this version" for bit in unknown if taint >> bit & 1))

    def trusted_keys(self) -> tuple[str, ...]:
        """Names of the certificates that the kernel holds."""
        return trusted_keys(self._root)

    def _lockdown(self) -> str:
        # `none [integrity] confidentiality`: the current one is in brackets.
        chosen = _CHOSEN.search(value_if_there(self._lockdown_file) or "")
        return chosen[1] if chosen else "none"

    def _read_secure_boot(self) -> bool:
        # Four bytes of attributes, then the value.
        content = read_bytes(self._secure_boot_file, 64) or b""
        return len(content) == 5 and content[4] == 1


def present_aliases(root: Path) -> Iterator[str]:
    """The modalias of every device of every bus, of the classes that have one (input, dmi), and of the processor.

    Walks the flat lists of /sys/bus and /sys/class rather than the tree of devices: some milliseconds.
    """
    sys = root / "sys"
    for bus in listdir(sys / "bus"):
        devices = sys / "bus" / bus / "devices"
        yield from _aliases(devices)
    for name in listdir(sys / "class"):
        yield from _aliases(sys / "class" / name)
    processor = read_text(sys / "devices/system/cpu/modalias", 1 << 16)
    if processor:
        yield processor


def driverless_aliases(root: Path) -> Iterator[str]:
    """The modalias of every device of a bus that no driver is bound to.

    A device of ACPI only describes another one, of the platform or another bus, which has the driver and an alias.
    """
    for bus in listdir(root / "sys/bus"):
        folder = root / "sys/bus" / bus / "devices"
        for device in listdir(folder):
            alias = read_text(folder / device / "modalias")
            if alias and not any(readlink(folder / device / link) for link in ("driver", "physical_node")):
                yield alias


def _aliases(folder: Path) -> Iterator[str]:
    for device in listdir(folder):
        alias = read_text(folder / device / "modalias")
        if alias:
            yield alias
