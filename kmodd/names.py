# SPDX-License-Identifier: LGPL-2.1-or-later
"""Parses names and values from callers, once, where they enter.

A module name that has passed `parse_module` is canonical: `-` is `_`, as the kernel spells it. Policy, locks, journal and
comparisons see only that form.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NewType

from kmodd.errors import InvalidArgs

ModuleName = NewType("ModuleName", str)
"""A canonical module name: letters, digits and `_`, at most 55 characters (MODULE_NAME_LEN of the kernel less its NUL)."""

Alias = NewType("Alias", str)
"""A name that only the alias index can resolve, such as `pci:v00008086d…` or `fs-ext4`."""

MODULE_NAME_MAX = 55
ALIAS_MAX = 2048
"""Bytes of one alias: a uevent has no room for more (UEVENT_BUFFER_SIZE of include/linux/kobject.h). That of a processor, which
lists all it can do, has a thousand."""
STRING_MAX = 4096
"""Bytes of one string argument, as UTF-8."""
ARRAY_MAX = 64
ON_BEHALF_OF_MAX = 256
"""Maximum bytes of on-behalf-of."""
BATCH_MAX = 256
SCOPES = (
    "read",
    "inspect",
    "load",
    "unload",
    "set-parameter",
    "configure",
    "surface",
    "surface-allow",
    "import",
    "activate",
    "admin",
)
"""What a token may be good for; `admin` includes all others."""
PARAMETER_VALUE_MAX = 1024
"""Bytes of one parameter's value (param_set_charp in kernel/params.c refuses more)."""

_RESPONSE_ID_MAX = len("module:") + ARRAY_MAX * (MODULE_NAME_MAX + 1)

_MODULE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,54}")
# What devices, file systems and algorithms are called holds blanks, quotes, slashes and parentheses: `crypto-gcm(aes)`,
# `devname:net/tun`, `platform:Fixed MDIO bus`. It is looked up and never opened; what begins as a path does is refused. Of the
# letters of a name alone it is a name or nothing.
_ALIAS = re.compile(r"(?![A-Za-z0-9_-]*\Z)[A-Za-z0-9][ -~]{0,2047}")
_PARAMETER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_VALUE = re.compile(r"[ -~]*")
_RELEASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,63}")  # what `uname -r` says: 64 characters at most
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~:-]{0,63}")
_GLOB = re.compile(r"[A-Za-z0-9_*?\[\]!-]{1,64}")
_SOURCE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./+-]{0,254}")
_CVE = re.compile(r"CVE-\d{4}-\d{4,7}", re.ASCII)
_BUS_PLAIN = re.compile(r"[A-Za-z0-9]")
_BUS_ESCAPE = re.compile(r"_([0-9a-f]{2})")


def canonical(name: str) -> ModuleName:
    """Spell a name that the machine itself gave (a file, an index, the kernel) as the kernel does."""
    return ModuleName(name.replace("-", "_"))


def is_module_name(text: str) -> bool:
    """Tell whether the text is a well-formed module name."""
    return _MODULE.fullmatch(text) is not None


def parse_module(text: str) -> ModuleName:
    """Parse a module name from a caller; InvalidArgs names the rule it breaks."""
    if not is_module_name(text):
        raise InvalidArgs(
            "a module name is 1 to 55 letters, digits, '-' and '_', and starts with a letter or digit",
            argument="module",
        )
    return canonical(text)


def parse_module_or_alias(text: str) -> ModuleName | Alias:
    """Parse what `Load`, `Plan` and `Describe` accept: a module name, or an alias with its bus's prefix and a colon."""
    if is_module_name(text):
        return canonical(text)
    if _ALIAS.fullmatch(text) is None:
        raise InvalidArgs(
            "expected a module name (letters, digits, '-', '_', at most 55) or an alias such as 'pci:v00008086d00001237…'",
            argument="module",
        )
    return Alias(text)


def parse_parameter_name(text: str) -> str:
    """Parse a parameter's name; `-` and `_` are the same letter in the kernel, and `_` is answered."""
    if _PARAMETER.fullmatch(text) is None:
        raise InvalidArgs("a parameter name is 1 to 64 letters, digits, '_', '-' and '.'", argument="parameter")
    return text.replace("-", "_")


def parse_parameter_value(text: str) -> str:
    """Parse a parameter's value: printable ASCII.

    Its readers are many, and do not agree about more: to the kernel (lib/ctype.c) the byte 0xA0, which thousands of
    characters hold in UTF-8, is a space that ends a value; to polkit's rules it is none. The kernel's parser (next_arg in
    lib/cmdline.c) takes `"` as a quote that cannot be escaped, and ends at a newline; modprobe.d swallows a trailing
    backslash. So those are refused here, for loading and for writing alike.
    """
    if len(text.encode("utf-8", "surrogatepass")) > PARAMETER_VALUE_MAX:
        raise InvalidArgs(f"a parameter value is at most {PARAMETER_VALUE_MAX} bytes", argument="value")
    if '"' in text:
        raise InvalidArgs(
            'a parameter value cannot contain the quote character ", the kernel has no escape for it', argument="value"
        )
    if text.endswith("\\"):
        raise InvalidArgs("a parameter value cannot end with a backslash", argument="value")
    if not text.isprintable():
        raise InvalidArgs(
            "a parameter value cannot contain control characters, line breaks or invalid text", argument="value"
        )
    if _VALUE.fullmatch(text) is None:
        raise InvalidArgs(
            "a parameter value is printable ASCII, because the kernel takes bytes of other characters for spaces",
            argument="value",
        )
    return text


def parse_parameters(values: Mapping[str, str]) -> dict[str, str]:
    """Parse a module's parameters, in the caller's order."""
    if len(values) > ARRAY_MAX:
        raise InvalidArgs(f"at most {ARRAY_MAX} parameters", argument="parameters")
    parsed: dict[str, str] = {}
    for name, value in values.items():
        key = parse_parameter_name(name)
        if key in parsed:
            raise InvalidArgs("one parameter is given twice ('-' and '_' are the same letter)", argument="parameters")
        parsed[key] = parse_parameter_value(value)
    return parsed


def parse_glob(text: str) -> str:
    """Parse a pattern over module names: letters, digits, `_`, `-`, `*`, `?`, `[…]`."""
    if _GLOB.fullmatch(text) is None:
        raise InvalidArgs("a pattern is 1 to 64 letters, digits, '_', '-', '*', '?' and '[…]'", argument="match")
    return text.replace("-", "_") if "[" not in text else text


def is_release(text: str) -> bool:
    """Tell whether the text can be a kernel's release, as a name of a folder below /lib/modules."""
    return _RELEASE.fullmatch(text) is not None


def parse_release(text: str) -> str:
    """Parse a kernel's release from a caller."""
    if not is_release(text):
        raise InvalidArgs("a kernel is named by its release, as printed by `uname -r`", argument="kernel")
    return text


def is_version(text: str) -> bool:
    """Tell whether the text can name a version of a custom module."""
    return _VERSION.fullmatch(text) is not None


def parse_version(text: str) -> str:
    """Parse the version of a custom module."""
    if not is_version(text):
        raise InvalidArgs(
            "a version is 1 to 64 letters, digits, '.', '_', '+', '~', ':' and '-', and starts with a letter or digit",
            argument="version",
        )
    return text


def is_cve(text: str) -> bool:
    """Tell whether the text is the number of a CVE."""
    return _CVE.fullmatch(text) is not None


def is_source_file(text: str) -> bool:
    """Tell whether the text is the path of a file in the sources of the kernel."""
    return _SOURCE.fullmatch(text) is not None and ".." not in text


def parse_source_file(text: str) -> str:
    """Parse the path of a file in the sources of the kernel; InvalidArgs."""
    if not is_source_file(text):
        raise InvalidArgs("a source file is named by its path in the sources of the kernel", argument="options")
    return text


def parse_response_id(text: str) -> str:
    """Parse the id of a response to a vulnerability: a CVE, or `module:` and the names of its modules. InvalidArgs."""
    if is_cve(text):
        return text
    modules = modules_of_response(text)
    if not modules:
        raise InvalidArgs("a response is named by its CVE, or by module: and the names of its modules", argument="id")
    return response_id(modules)


def response_id(modules: Iterable[ModuleName]) -> str:
    """The id of a response to modules alone."""
    return f"module:{','.join(dict.fromkeys(modules))}"


def modules_of_response(text: str) -> tuple[ModuleName, ...]:
    """The modules that the id of a response names; none for a CVE, and for what is no such id."""
    kind, _, names = text.partition(":")
    if kind != "module" or len(text) > _RESPONSE_ID_MAX or not all(map(is_module_name, names.split(","))):
        return ()
    return tuple(map(canonical, names.split(",")))


def parse_reason(text: str) -> str:
    """Parse the reason a caller gives for the journal: one line of at most 1024 bytes."""
    if len(text.encode("utf-8", "surrogatepass")) > 1024:
        raise InvalidArgs("a reason is at most 1024 bytes", argument="reason")
    # str.isprintable() is false for control, format (bidi marks), surrogate and separator characters other than space.
    if not text.isprintable():
        raise InvalidArgs("a reason is one line without control characters", argument="reason")
    return text


def parse_on_behalf_of(text: str) -> str:
    """Parse whom a caller says to speak for: one line of at most 256 bytes."""
    if len(text.encode("utf-8", "surrogatepass")) > ON_BEHALF_OF_MAX:
        raise InvalidArgs(f"on-behalf-of is at most {ON_BEHALF_OF_MAX} bytes", argument="on-behalf-of")
    if not text.isprintable():
        raise InvalidArgs("on-behalf-of is one line without control characters", argument="on-behalf-of")
    return text


def parse_description(text: str) -> str:
    """Parse what a caller says about a custom module: one line of at most 1024 bytes."""
    if len(text.encode("utf-8", "surrogatepass")) > 1024:
        raise InvalidArgs("a description is at most 1024 bytes", argument="description")
    if not text.isprintable():
        raise InvalidArgs("a description is one line without control characters", argument="description")
    return text


def escape_label(name: str) -> str:
    """Escape a name for an object path as sd_bus_path_encode does: other than letters and digits become `_xx`."""
    if not name:
        return "_"
    out = []
    for position, byte in enumerate(name.encode()):
        char = chr(byte)
        if _BUS_PLAIN.fullmatch(char) and not (position == 0 and char.isdigit()):
            out.append(char)
        else:
            out.append(f"_{byte:02x}")
    return "".join(out)


def unescape_label(label: str) -> str:
    """Undo `escape_label`; an impossible escape raises ValueError."""
    if label == "_":
        return ""
    if "_" in _BUS_ESCAPE.sub("", label):
        raise ValueError("not an escaped label")
    return _BUS_ESCAPE.sub(lambda escape: chr(int(escape[1], 16)), label)
