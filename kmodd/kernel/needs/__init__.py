# SPDX-License-Identifier: LGPL-2.1-or-later
"""All sources of what this system needs, each read on its own: one that cannot be read does not hide the others."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from kmodd.kernel.modules.compression import Damaged, Unsupported
from kmodd.model.surface import Reading, Want
from kmodd.names import canonical

WANTS_MAX = 65536
"""Of one source."""
_IMAGES = ("boot/initrd.img-{}", "boot/initramfs-{}.img")


class SystemNeeds:
    """`kmodd.kernel.ports.NeedSources` below a root folder. Reads hundreds of files: call it in a thread."""

    def __init__(self, root: Path, *, kinds: Callable[[], Mapping[str, str]] | None = None) -> None:
        """`kinds` are those of the network interfaces, by name; None for the running kernel's."""
        self._root = root
        self._kinds = kinds

    def read(self) -> tuple[Reading, ...]:
        """Every source but the initramfs."""
        # A megabyte that an idle daemon has no use for.
        from kmodd.kernel.needs import sources
        from kmodd.kernel.users.rtnetlink import link_kinds

        root, kinds = self._root, self._kinds or link_kinds
        readers: dict[str, Callable[[], Iterator[Want]]] = {
            "mounts": lambda: sources.mounts(root),
            "swap": lambda: sources.swaps(root),
            "fstab": lambda: sources.fstab(root),
            "crypttab": lambda: sources.crypttab(root),
            "console": lambda: sources.consoles(root),
            "network": lambda: sources.interfaces(root, kinds),
            "devices": lambda: sources.devices(root),
            "units": lambda: sources.units(root),
            "containers": lambda: sources.containers(root),
        }
        return tuple(_reading(source, wants) for source, wants in readers.items())

    def initramfs(self, release: str) -> Reading:
        """The modules in the initramfs of a kernel; some hundred milliseconds, and seconds where it is packed by xz."""
        return _reading("initramfs", lambda: self._image(release))

    def _image(self, release: str) -> Iterator[Want]:
        from kmodd.kernel.initramfs import members

        for name in _IMAGES:
            path = self._root / name.format(release)
            if path.is_file():
                for member, _, _ in members(path, lambda _: False):
                    module = member.rpartition("/")[2]
                    if ".ko" in module:
                        yield Want(canonical(module.partition(".")[0]), f"in /{name.format(release)}")
                return


def _reading(source: str, read: Callable[[], Iterator[Want]]) -> Reading:
    wants: dict[Want, None] = {}
    try:
        for want in read():
            wants[want] = None
            if len(wants) > WANTS_MAX:
                return Reading(source, tuple(wants), f"names more than {WANTS_MAX} modules")
    except OSError as error:
        return Reading(source, tuple(wants), f"cannot be read ({error.strerror or error})")
    except (Damaged, Unsupported) as error:
        return Reading(source, tuple(wants), f"cannot be read ({error})")
    return Reading(source, tuple(wants))
