# SPDX-License-Identifier: LGPL-2.1-or-later
"""What kmodctl's exit status says. The classes of `kmodd.errors` carry these numbers; a test holds the two together."""

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit status of kmodctl, by whose fault it is."""

    OK = 0
    FAILED = 1
    """kmodd has a bug."""
    USAGE = 2
    """The request was malformed: command line, name, value, option."""
    NOT_FOUND = 3
    ACCESS_DENIED = 4
    IN_THE_WAY = 5
    """In use, built in, not removable, in conflict, busy."""
    POLICY = 6
    LIMIT = 7
    BAD_FILE = 8
    BAD_PARAMETER = 9
    REFUSED_BY_MODULE = 10
    FORBIDDEN_BY_KERNEL = 11
    LOST_IN_KERNEL = 12
    UNAVAILABLE = 13
    INTERRUPTED = 130
    """As a shell reports SIGINT."""
    BROKEN_PIPE = 141
    """As a shell reports SIGPIPE."""
