# SPDX-License-Identifier: LGPL-2.1-or-later
"""Values of parameters as the kernel takes them and reads them back (kernel/params.c), for the simulated kernel."""

import errno
from dataclasses import dataclass

_RANGES = {
    "byte": (0, 0xFF),
    "short": (-0x8000, 0x7FFF),
    "ushort": (0, 0xFFFF),
    "int": (-0x80000000, 0x7FFFFFFF),
    "uint": (0, 0xFFFFFFFF),
    "hexint": (0, 0xFFFFFFFF),
    "long": (-(1 << 63), (1 << 63) - 1),
    "ulong": (0, (1 << 64) - 1),
    "ullong": (0, (1 << 64) - 1),
}
_TRUE = {"y": True, "Y": True, "1": True, "t": True, "T": True, "n": False, "N": False, "0": False}


@dataclass(frozen=True, slots=True)
class SimulatedParameter:
    """A parameter as a simulated module declares it."""

    name: str
    type: str = "int"
    """As in modinfo's parmtype: `bool`, `invbool`, a number, `charp`, `string`, or `array of` one of those."""
    description: str = ""
    value: str = "0"
    """What it holds when nobody gave one, spelled as it reads back."""
    mode: int = 0o444
    """Permission bits of its file; 0 has none."""
    limit: tuple[int, int] | None = None
    """Narrower range of numbers that its own code insists on."""
    length: int = 1024
    """Most characters of a text, most elements of an array."""
    multiple_of: int = 1
    """Its own code rounds numbers down to this."""
    rounds_up_to_mask: bool = False
    """Its own code keeps the next 2ⁿ-1, as loop does with max_part."""

    def take(self, text: str | None) -> str:
        """What reads back after `text` was written; None is a name without `=`. OSError carries the kernel's errno."""
        if text is None:
            if self.type != "bool":  # only bool has KERNEL_PARAM_OPS_FL_NOARG
                raise OSError(errno.EINVAL, "a value is required")
            return "Y"
        if self.type.startswith("array of "):
            words = text.split(",")
            if len(words) > self.length:
                raise OSError(errno.EINVAL, "too many elements")
            return ",".join(self._one(self.type.removeprefix("array of "), word) for word in words)
        return self._one(self.type, text)

    def _one(self, kind: str, text: str) -> str:
        if kind in {"charp", "string"}:
            if len(text.encode()) > self.length:
                raise OSError(errno.ENOSPC, "too long")
            return text
        if kind in {"bool", "invbool", "bint"}:
            return "Y" if _truth(text) else "N"
        number = _number(text, *(self.limit or _RANGES[kind]))
        number -= number % self.multiple_of
        if self.rounds_up_to_mask and number > 0:
            number = (1 << number.bit_length()) - 1
        return hex(number) if kind == "hexint" else str(number)


def _truth(text: str) -> bool:
    """kstrtobool of lib/kstrtox.c."""
    if text[:1] in _TRUE:
        return _TRUE[text[0]]
    if text[:1] in {"o", "O"} and text[1:2] in {"n", "N", "f", "F"}:
        return text[1] in "nN"
    raise OSError(errno.EINVAL, "not a truth value")


def _number(text: str, least: int, most: int) -> int:
    """kstrto* with base 0: decimal, 0x… or 0…, one newline allowed at the end."""
    digits = text.removesuffix("\n")
    body = digits.lstrip("+-") if len(digits) - len(digits.lstrip("+-")) <= 1 else ""
    base = 16 if body[:2].lower() == "0x" else 8 if body[:1] == "0" else 10
    try:
        # int() would allow blanks and underscores, the kernel does not.
        value = int(digits, base) if body.isalnum() else None
    except ValueError:
        value = None
    if value is None:
        raise OSError(errno.EINVAL, "not a number")
    if not least <= value <= most:
        raise OSError(errno.ERANGE, "out of range")
    return value


def split_arguments(arguments: str) -> list[tuple[str, str | None]]:
    """Split the argument string of `finit_module` into names and values, as next_arg of lib/cmdline.c does."""
    found: list[tuple[str, str | None]] = []
    position, end = 0, len(arguments)
    while position < end:
        if arguments[position].isspace():
            position += 1
            continue
        start, quoted, equals = position, False, -1
        while position < end and (quoted or not arguments[position].isspace()):
            if arguments[position] == '"':
                quoted = not quoted
            elif arguments[position] == "=" and equals < 0:
                equals = position
            position += 1
        if equals < 0:
            word = arguments[start:position].strip('"')
            if word == "--":
                break  # what follows is not for the module
            found.append((word.replace("-", "_"), None))
            continue
        name, value = arguments[start:equals].lstrip('"'), arguments[equals + 1 : position]
        # Only quotes around the whole value are dropped.
        if value.startswith('"'):
            value = value[1:].removesuffix('"')
        found.append((name.replace("-", "_"), value))
    return found
