# SPDX-License-Identifier: LGPL-2.1-or-later
"""Rules about modules on the kernel's command line."""

import re
from collections.abc import Iterator

from kmodd.kernel.modprobe_d import normalise
from kmodd.model import Rule

FILE = "/proc/cmdline"

# Words end at white space outside quotes (kcmdline parser of libkmod, next_arg in the kernel's lib/cmdline.c).
_WORD = re.compile(r'(?:[^\s"]|"[^"]*(?:"|$))+')
# MODULE.PARAMETER[=VALUE] as kmod_config_parse_kcmdline takes it: one dot before the `=`, quotes around the whole word
# or inside the value only.
_OPTION = re.compile(r'("?)([^".=\s]+)\.([^".=\s]+)(?:(=)(.*))?', re.DOTALL)


def words(command_line: str) -> list[str]:
    """Split it at white space outside quotes; the quotes stay."""
    return _WORD.findall(command_line)


def command_line_rules(command_line: str) -> list[Rule]:
    """Parse `module_blacklist=`, `modprobe.blacklist=` and `MODULE.PARAMETER=VALUE`, in their order.

    module_blacklist= is the kernel's own: it compares letter by letter (so `snd-pcm` there matches nothing and is kept
    as written), the last one counts, and ` -- ` ends what the kernel reads. The others are libkmod's.
    """
    rules: list[Rule] = []
    kernel: list[Rule] = []
    ended = False
    for word in words(command_line):
        ended = ended or word == "--"
        bare = word.strip('"')
        key, equals, value = bare.partition("=")
        if equals and key.replace("-", "_") == "module_blacklist":
            if not ended:
                kernel = [
                    Rule("module_blacklist", name, "", FILE, 1, bare) for name in value.strip('"').split(",") if name
                ]
            continue
        rules.extend(_options(word))
    return kernel + rules


def _options(word: str) -> Iterator[Rule]:
    found = _OPTION.fullmatch(word)
    if found is None:
        return
    quote, module, parameter, equals, value = found.groups()
    if module == "modprobe" and parameter == "blacklist" and equals:
        # libkmod compares these names as written, so that `snd-pcm` never matches. What the administrator means is
        # plain, and to refuse is the safe side.
        for name in value.strip('"').split(","):
            if name:
                yield Rule("blacklist", name.replace("-", "_"), "", FILE, 1, word)
        return
    name = normalise(module)
    if name is None or (quote and not equals):
        return
    # Boot loaders quote the whole word; the quote belongs before the value.
    text = f'{parameter}="{value}' if quote else parameter + (equals or "") + (value or "")
    yield Rule("options", name, text, FILE, 1, word)
