# SPDX-License-Identifier: LGPL-2.1-or-later
"""Plans so young that making them again would find the same."""

from collections.abc import Callable

from kmodd.model import Plan

FRESH_USEC = 20_000
"""Age up to which a plan may be carried out as it is.

What another program changes in this time it could as well change between planning and the call into the kernel, which
takes about as long; the kernel refuses then, and its refusal is explained.
"""
_KEPT_MAX = 64


class FreshPlans:
    """The plans made since anything of ours changed. Reading the machine for a plan is half of what a short call costs."""

    def __init__(self, clock: Callable[[], int]) -> None:
        """`clock` answers microseconds."""
        self._clock = clock
        self._made: dict[int, tuple[Plan, int]] = {}

    def note(self, plan: Plan) -> Plan:
        """Remember when this plan was made, and answer it."""
        if len(self._made) >= _KEPT_MAX:
            self._made.clear()
        # By identity: the entry keeps the plan, so no other one can have its number meanwhile.
        self._made[id(plan)] = plan, self._clock()
        return plan

    def changed(self) -> None:
        """Something happened: every plan has to be made again."""
        self._made.clear()

    def take(self, plan: Plan) -> bool:
        """Tell, once, whether this very plan is as good as a new one."""
        made = self._made.pop(id(plan), None)
        return made is not None and 0 <= self._clock() - made[1] <= FRESH_USEC
