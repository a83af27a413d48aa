# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which copies of a mount go when the original is unmounted.

A new mount namespace begins with a copy of every mount. An umount reaches a copy through the mounts that the two are attached
to: the copy goes where the one below it is a peer or a slave of the one below the original, at the same folder, unless
something is mounted on the copy that stays (Documentation/filesystems/sharedsubtree.rst, "umount semantics"; propagate_umount
in fs/pnode.c). What mountinfo tells of the copy itself, `shared:` and `master:`, is about mounts on top of it and decides nothing.
"""

from functools import cached_property

from kmodd.fast_dataclass import dataclass

_CHAIN_MAX = 16
"""Masters of masters that are followed; a mount with more of them is taken for one that stays."""
_ABOVE_MAX = 256
"""Mounts on top of a copy that are examined, likewise."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """Where a mount is attached, in terms that mean the same in every mount namespace."""

    device: bytes
    path: bytes
    """The folder of that file system, from its own root."""
    group: int
    """The peer group of the mount below; 0 for none."""
    master: int
    """The peer group from which the mount below receives; 0 for none."""


class MountTable:
    """The lines of one mountinfo, by the numbers of the mounts."""

    def __init__(self) -> None:
        self._lines: dict[bytes, bytes] = {}

    def add(self, line: bytes) -> bytes:
        """One more line; its number."""
        number = line.partition(b" ")[0]
        self._lines[number] = line
        return number

    @property
    def numbers(self) -> tuple[bytes, ...]:
        """Of all mounts, in the order of the table."""
        return tuple(self._lines)

    @cached_property
    def _above(self) -> dict[bytes, list[bytes]]:
        above: dict[bytes, list[bytes]] = {}
        for number, line in self._lines.items():
            fields = line.split(b" ", 2)
            if len(fields) == 3 and fields[1] != number:
                above.setdefault(fields[1], []).append(number)
        return above

    def attachment(self, number: bytes) -> Attachment | None:
        """None where the mount below is not in the table: it is the root of what the process sees."""
        fields = self._lines[number].split(b" ", 5)
        below = self._lines.get(fields[1], b"").split(b" ") if len(fields) == 6 else []
        if len(below) < 7 or not _is_below(fields[4], below[4]):
            return None
        path = below[3].rstrip(b"/") + b"/" + fields[4][len(below[4].rstrip(b"/")) :].strip(b"/")
        group = master = 0
        for word in below[6:]:
            if word == b"-":
                break
            key, _, value = word.partition(b":")
            if key == b"shared" and value.isdigit():
                group = int(value)
            elif key == b"master" and value.isdigit():
                master = int(value)
        return Attachment(below[2], path, group, master)

    def on_top(self, number: bytes) -> list[bytes]:
        """The mounts on it but one at its very root: such a one takes its place when it goes."""
        point = self.point(number)
        return [each for each in self._above.get(number, ()) if self.point(each) != point]

    def is_covered(self, number: bytes) -> bool:
        """Another mount hides it: its path leads elsewhere."""
        point = self.point(number)
        return number in self._hidden or any(self.point(each) == point for each in self._above.get(number, ()))

    @cached_property
    def _hidden(self) -> set[bytes]:
        """The mounts in the way of which another one stands, at their folder or at one above it, and all on top of them."""
        hidden: set[bytes] = set()
        for beside in self._above.values():
            first: tuple[bytes, bytes] | None = None
            # What is in a folder comes right after the folder.
            for each in sorted((self.point(number).rstrip(b"/") + b"/", number) for number in beside):
                if first is None or not each[0].startswith(first[0]):
                    first = each
                    continue
                hidden.add(each[1])
                if each[0] == first[0]:
                    hidden.add(first[1])
        waiting = list(hidden)
        while waiting:
            further = [number for number in self._above.get(waiting.pop(), ()) if number not in hidden]
            hidden.update(further)
            waiting += further
        return hidden

    def point(self, number: bytes) -> bytes:
        """Where it is mounted, escaped as in the line."""
        fields = self._lines[number].split(b" ", 5)
        return fields[4] if len(fields) == 6 else b""


class Originals:
    """Mounts that are unmounted by a command, to which copies in tables that are read later are compared."""

    def __init__(self) -> None:
        self._places: set[tuple[int, bytes, bytes]] = set()
        self._masters: dict[int, int] = {}

    def add(self, table: MountTable) -> None:
        """The mounts of this table are unmounted where they are named."""
        for number in table.numbers:
            attachment = table.attachment(number)
            if attachment is not None and attachment.group:
                self._places.add((attachment.group, attachment.device, attachment.path))
                self._learn(attachment)

    def staying(self, table: MountTable, numbers: list[bytes]) -> list[bytes]:
        """Those of the mounts that no umount of an original reaches, the uppermost first."""
        reached: dict[bytes, bool] = {}
        # What is mounted on another mount comes after it.
        return [number for number in reversed(numbers) if not self._is_reached(table, number, reached)]

    def _is_reached(self, table: MountTable, number: bytes, reached: dict[bytes, bool]) -> bool:
        examined, waiting = 0, [number]
        while waiting:
            each = waiting.pop()
            goes = reached.get(each)
            if goes is None:
                examined += 1
                goes = examined <= _ABOVE_MAX and self._is_linked(table.attachment(each))
                if goes:
                    waiting += table.on_top(each)
            if not goes:
                reached[each] = reached[number] = False
                return False
        reached[number] = True
        return True

    def _is_linked(self, attachment: Attachment | None) -> bool:
        if attachment is None:
            return False
        self._learn(attachment)
        group = attachment.group or attachment.master
        for _ in range(_CHAIN_MAX):
            if not group:
                return False
            if (group, attachment.device, attachment.path) in self._places:
                return True
            group = attachment.master if group == attachment.group else self._masters.get(group, 0)
        return False

    def _learn(self, attachment: Attachment) -> None:
        if attachment.group and attachment.master:
            self._masters[attachment.group] = attachment.master


def _is_below(path: bytes, folder: bytes) -> bool:
    folder = folder.rstrip(b"/")
    return path == folder or path.startswith(folder + b"/")
