# SPDX-License-Identifier: LGPL-2.1-or-later
"""argparse, which answers a mistyped word with the words that are close to it instead of all there are."""

import argparse
from typing import Any

_MATCHES = 3


class Parser(argparse.ArgumentParser):
    """Parsers of its commands are of this class too."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        # Called for every choice, and overridable by convention only: argparse has no public place for this (3.11 to 3.14).
        if action.choices is None or value in action.choices:
            return
        from difflib import get_close_matches  # only a mistyped word needs it

        words = [str(choice) for choice in action.choices]
        close = get_close_matches(str(value), words, n=_MATCHES, cutoff=0.6)
        known = f"did you mean {' or '.join(close)}?" if close else f"it is one of: {', '.join(words)}"
        raise argparse.ArgumentError(action, f"{str(value)!r} is not known; {known}")
