# SPDX-License-Identifier: LGPL-2.1-or-later
"""What systemd-modules-load loads at boot: modules-load.d(5) and `modules-load=` on the kernel's command line.

Follows src/modules-load/modules-load.c of systemd 252: one name or alias on a line; lines that start with `#` or `;` are
comments; blacklisted modules are skipped when it loads, which is not this reader's to say.
"""

import re

from kmodd.kernel.command_line import FILE, words
from kmodd.model import Rule

DIRECTORIES = (
    "etc/modules-load.d",
    "run/modules-load.d",
    "usr/local/lib/modules-load.d",
    "usr/lib/modules-load.d",
    "lib/modules-load.d",
)
"""Below the root, in order of rank."""

KIND = "autoload"
INITRAMFS = "initramfs"
"""Value of a rule that counts in the initramfs only (`rd.modules-load=`)."""

# strstrip() and read_line() of systemd.
_WHITESPACE = " \t\n\r"
_LINE_END = re.compile("[\r\0]")
"""Beside the newline."""


def is_modules_load(name: bytes) -> bool:
    """Tell whether a file of this name is read."""
    return name.endswith(b".conf")


def parse_modules(data: bytes, file: str) -> list[Rule]:
    """Parse the text of one file."""
    rules = []
    for number, line in enumerate(data.decode("utf-8", "replace").split("\n"), 1):
        for part in _LINE_END.split(line):
            name = part.strip(_WHITESPACE)
            if name and name[0] not in "#;":
                rules.append(Rule(KIND, name.replace("-", "_"), "", file, number, name))
    return rules


def command_line_modules(command_line: str) -> list[Rule]:
    """Parse `modules-load=` and `rd.modules-load=`; `-` and `_` are the same letter there."""
    rules = []
    for word in words(command_line):
        key, equals, value = word.strip('"').partition("=")
        place = {"modules_load": "", "rd.modules_load": INITRAMFS}.get(key.replace("-", "_"))
        if equals and place is not None:
            names = (name for name in value.strip('"').split(",") if name)
            rules += [Rule(KIND, name.replace("-", "_"), place, FILE, 1, word) for name in names]
    return rules
