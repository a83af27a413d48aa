# SPDX-License-Identifier: LGPL-2.1-or-later
"""What one user may have under way at once."""

from collections import Counter
from dataclasses import dataclass, replace

from kmodd.errors import LimitsExceeded


@dataclass(frozen=True, slots=True)
class Limits:
    """Numbers for one user."""

    operations: int = 4
    """Calls that need authorisation, under way at once."""
    imports: int = 8
    """Calls that bring a file, under way at once; they do not count as operations."""
    prompts: int = 2
    """Password prompts at once."""
    waiting: int = 8192
    """Calls that wait for their turn, over all of the user's connections.

    Enough for every connection and every reply the system bus lets one user wait for: a call that waits is answered late and
    keeps its caller from the next one, while a refusal only makes room for another call.
    """
    waiting_bytes: int = 8 << 20
    """Bytes of the bodies of these calls."""
    waiting_per_connection: int = 256
    running: int = 16
    """Calls being answered at once; further ones wait."""


USER = Limits()
ROOT = Limits(operations=64, imports=32, waiting_bytes=16 << 20, waiting_per_connection=2048, running=128)
"""Root's limits are higher, but finite: a loop gone wrong is a loop gone wrong."""

Key = int | None
"""A user id; everyone whose user is unknown shares None."""


class Slot:
    """Something counted, until it is released."""

    __slots__ = ("_counter", "_key")

    def __init__(self, counter: "Counter[Key]", key: Key) -> None:
        self._counter: Counter[Key] | None = counter
        self._key = key
        counter[key] += 1

    def release(self) -> None:
        """Give it back; again is nothing."""
        counter, self._counter = self._counter, None
        if counter is not None:
            counter[self._key] -= 1
            if not counter[self._key]:
                del counter[self._key]


class Quota:
    """Counts per user."""

    def __init__(self, user: Limits = USER, root: Limits = ROOT) -> None:
        self._user = user
        self._root = root
        self._operations: Counter[Key] = Counter()
        self._imports: Counter[Key] = Counter()
        self._prompts: Counter[Key] = Counter()

    def limits(self, uid: Key) -> Limits:
        """The user's limits."""
        return self._root if uid == 0 else self._user

    def operation(self, uid: Key) -> Slot:
        """One more operation of this user, or LimitsExceeded."""
        limit = self.limits(uid).operations
        if self._operations[uid] >= limit:
            raise LimitsExceeded(f"this user has {limit} operations under way already")
        return Slot(self._operations, uid)

    def file(self, uid: Key) -> Slot:
        """One more call of this user that brings a file, or LimitsExceeded."""
        limit = self.limits(uid).imports
        if self._imports[uid] >= limit:
            raise LimitsExceeded(f"this user has {limit} imports under way already")
        return Slot(self._imports, uid)

    def prompt(self, uid: Key) -> Slot:
        """One more password prompt for this user, or LimitsExceeded."""
        limit = self.limits(uid).prompts
        if self._prompts[uid] >= limit:
            raise LimitsExceeded(f"this user has {limit} password prompts open already")
        return Slot(self._prompts, uid)

    def change(self, *, operations: int, prompts: int) -> None:
        """Change the numbers for an ordinary user; root has sixteen times as many operations. What is under way goes on."""
        self._user = replace(self._user, operations=operations, prompts=prompts)
        self._root = replace(self._root, operations=16 * operations, prompts=prompts)

    @property
    def idle(self) -> bool:
        """Nothing is counted."""
        return not self._operations and not self._imports and not self._prompts
