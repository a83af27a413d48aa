# SPDX-License-Identifier: LGPL-2.1-or-later
"""What an interface answers for a request that is no plan and is known to fail."""

from kmodd.bus.call import Refusal
from kmodd.bus.interfaces.parts import Refusals
from kmodd.errors import KmoddError
from kmodd.model import Attempt


def refusal(refusals: Refusals, attempt: Attempt, error: KmoddError) -> Refusal:
    """Answer the error and write it down, as it is done for plans."""
    return Refusal(lambda caller: refusals.note(attempt, error, caller), attempt.on_behalf_of)
