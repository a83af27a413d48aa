# SPDX-License-Identifier: LGPL-2.1-or-later
"""What lies on the disk for this boot and the next one."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BootImage:
    """The initramfs of a kernel, compared with the files it was made from."""

    release: str
    file: str
    kind: str
    """`initramfs-tools` or `dracut`."""
    differences: tuple[str, ...] = ()
    """Clauses: `/etc/modprobe.d/x.conf has changed`; empty when it is up to date."""
    by_content: bool = False
    """The image itself was read; otherwise only its time was compared with the files'."""

    @property
    def refresh(self) -> str:
        """The command that makes it anew."""
        if self.kind == "dracut":
            return f"dracut -f {self.file} {self.release}"
        return f"update-initramfs -u -k {self.release}"


@dataclass(frozen=True, slots=True)
class Trees:
    """Module trees below /lib/modules."""

    newer: tuple[str, ...] = ()
    """Releases with an index that are newer than the running kernel, the newest last."""
    replaced: tuple[tuple[str, str], ...] = ()
    """(module, file): modules that take the place of one of the kernel's own."""
