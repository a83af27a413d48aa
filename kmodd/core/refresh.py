# SPDX-License-Identifier: LGPL-2.1-or-later
"""Looking at the index's files once for all calls that arrived together."""

from collections.abc import Callable

from kmodd.kernel.ports import ModuleIndex


class Refresh:
    """Refreshes the index, unless it was since anything last arrived.

    A caller may count on every change made before its call. Whatever is being answered arrived before the last arrival,
    so a refresh begun after that one has seen all changes that count. Only for calls that are answered at once: who waits
    for a lock or a password refreshes again.
    """

    def __init__(self, index: ModuleIndex, arrivals: Callable[[], int]) -> None:
        """`arrivals` is a number that rises whenever something is received."""
        self._index = index
        self._arrivals = arrivals
        self._seen = -1

    def __call__(self) -> None:
        """Refresh it if need be."""
        arrivals = self._arrivals()
        if arrivals != self._seen:
            self._index.refresh()
            self._seen = arrivals
