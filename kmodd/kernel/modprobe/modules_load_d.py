# SPDX-License-Identifier: LGPL-2.1-or-later
"""Modules loaded at boot: modules-load.d(5) and `modules-load=` on the kernel command line; and rules on that command line.

Follows src/modules-load/modules-load.c of systemd 252: one name or alias on a line; lines that start with `#` or `;` are
comments; blacklisted modules are skipped when it loads, which this reader does not evaluate.
"""

import re
from collections.abc import Iterator

from kmodd.kernel.modprobe.modprobe_d import normalise
from kmodd.model import Rule
from kmodd.model.arguments import encoded, key, read

FILE = "/proc/cmdline"

# Words end at white space outside quotes (kmod_config_parse_kcmdline of libkmod, extract_first_word of systemd); what the
# kernel reads itself is split by kmodd.model.arguments.
_WORD = re.compile(r'(?:[^\s"]|"[^"]*(?:"|$))+', re.ASCII)
# MODULE.PARAMETER[=VALUE] as kmod_config_parse_kcmdline takes it: one dot before the `=`, quotes around the whole word
# or inside the value only.
_OPTION = re.compile(r'("?)([^".=\s]+)\.([^".=\s]+)(?:(=)(.*))?', re.DOTALL | re.ASCII)


def words(command_line: str) -> list[str]:
    """Split it at white space outside quotes; the quotes stay."""
    return _WORD.findall(command_line)


def command_line_rules(command_line: str) -> list[Rule]:
    """Parse `module_blacklist=`, `modprobe.blacklist=` and `MODULE.PARAMETER=VALUE`, in their order.

    Both blacklists are compared letter by letter: `snd-pcm` there matches nothing, and is kept as written. module_blacklist= is the
    kernel's own, and read as the kernel splits the line: the last one counts, and ` -- ` ends what it reads. The others are libkmod's,
    to which the byte 0xA0 is no space.
    """
    return [
        *_kernel_list(command_line),
        *(rule for word in words(command_line) for rule in _options(word)),
    ]


def _kernel_list(command_line: str) -> list[Rule]:
    names = ""
    for word in read(encoded(command_line)):
        if word.ends:
            break
        if key(word.name) == "module_blacklist" and word.value is not None:
            names = encoded(word.value).decode("utf-8", "replace")
    text = f"module_blacklist={names}"
    return [Rule("module_blacklist", name, "", FILE, 1, text) for name in names.split(",") if name]


def _options(word: str) -> Iterator[Rule]:
    option = _OPTION.fullmatch(word)
    if option is None:
        return
    quote, module, parameter, equals, value = option.groups()
    if module == "modprobe" and parameter == "blacklist" and equals:
        # libkmod compares these names as written too.
        yield from (Rule("blacklist", name, "", FILE, 1, word) for name in value.strip('"').split(",") if name)
        return
    name = normalise(module)
    if name is None or (quote and not equals):
        return
    # Boot loaders quote the whole word; the quote belongs before the value.
    text = f'{parameter}="{value}' if quote else parameter + (equals or "") + (value or "")
    yield Rule("options", name, text, FILE, 1, word)


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
