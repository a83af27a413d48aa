# SPDX-License-Identifier: LGPL-2.1-or-later
"""Modules of the simulated kernel with their possible faults, the faulty test modules, and parameter types.

Values are parsed and printed as in kernel/params.c.
"""

import errno
from dataclasses import field, replace
from enum import StrEnum

from kmodd.fast_dataclass import dataclass
from kmodd.model import Consequence, Remedy, User

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
_SPACE = "\t\n\v\f\r \xa0"
_TRUE = {"y": True, "Y": True, "1": True, "t": True, "T": True, "n": False, "N": False, "0": False}


@dataclass(frozen=True, slots=True)
class SimulatedParameter:
    """A parameter as a simulated module declares it."""

    name: str
    type: str = "int"
    """As in modinfo's parmtype: `bool`, `invbool`, a number, `charp`, `string`, or `array of` one of those."""
    description: str = ""
    value: str = "0"
    """Its default value, spelled as it reads back."""
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
            if self.type not in {"bool", "bint"}:  # these have KERNEL_PARAM_OPS_FL_NOARG
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
    """Split the argument string of `finit_module` into names and values, as next_arg of lib/cmdline.c does.

    It is written apart from `kmodd.model.arguments`, so that the two answer for each other.
    """
    parameters: list[tuple[str, str | None]] = []
    # The kernel reads bytes.
    arguments = arguments.encode("utf-8", "surrogateescape").decode("latin-1")
    position, end = 0, len(arguments)
    while position < end:
        if arguments[position] in _SPACE:
            position += 1
            continue
        start, quoted, equals = position, False, -1
        while position < end and (quoted or arguments[position] not in _SPACE):
            if arguments[position] == '"':
                quoted = not quoted
            elif arguments[position] == "=" and equals < 0:
                equals = position
            position += 1
        if equals < 0:
            word = arguments[start:position].strip('"')
            if word == "--":
                break  # what follows is not for the module
            parameters.append((word.replace("-", "_"), None))
            continue
        name, value = arguments[start:equals].lstrip('"'), arguments[equals + 1 : position]
        # Only quotes around the whole value are dropped.
        if value.startswith('"'):
            value = value[1:].removesuffix('"')
        parameters.append((name.replace("-", "_"), value))
    return [(_text(name), None if value is None else _text(value)) for name, value in parameters]


def _text(latin: str) -> str:
    return latin.encode("latin-1").decode("utf-8", "replace")


RELEASE = "6.1.0-simulated-amd64"


class FaultKind(StrEnum):
    """What goes wrong inside init() or exit()."""

    ERROR = "error"
    """It answers an errno."""
    HANG = "hang"
    """It does not come back until the test releases it."""
    OOPS = "oops"
    """The kernel kills the process that made the call."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong, with what the kernel logs about it."""

    kind: FaultKind = FaultKind.ERROR
    errno: int = 0
    log: tuple[str, ...] = ()
    before_init: bool = False
    """The file is refused before the module is laid out: a bad file, signature or version."""
    from_parameter: str = ""
    """Answer the negative errno that this parameter holds; 0 is success."""
    for_ever: bool = False
    """A hang that nothing releases."""


@dataclass(frozen=True, slots=True)
class SimulatedModule:
    """A module as its file and its code make it."""

    name: str
    description: str = ""
    folder: str = "drivers/misc"
    """Below /lib/modules/RELEASE/kernel; ignored for a module that is built in."""
    depends: tuple[str, ...] = ()
    softdep_pre: tuple[str, ...] = ()
    softdep_post: tuple[str, ...] = ()
    weakdeps: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    parameters: tuple[SimulatedParameter, ...] = ()
    firmware: tuple[str, ...] = ()
    author: str = "Debian Kernel Team"
    license: str = "GPL"
    version: str = ""
    signed: bool = True
    intree: bool = True
    builtin: bool = False
    permanent: bool = False
    """It has init() but no exit()."""
    size: int = 16384
    """Bytes."""
    init: Fault | None = None
    exit: Fault | None = None
    init_seconds: float = 0.004
    exit_seconds: float = 0.010
    init_log: tuple[str, ...] = ()
    """What init() says in the kernel log when it succeeds."""
    users: tuple[User, ...] = field(default=())
    """What in user space takes hold of it as soon as it is live, one reference each."""
    consequences: tuple[Consequence, ...] = field(default=())
    """What comes into being with it and goes with it, without a reference."""
    holds: str = ""
    """Name of the module in the file, where that was renamed."""
    held_by: str = ""
    """A parameter of type bool: while it is true the module holds a reference to itself that nothing explains."""
    slept_in: tuple[str, str] = ("", "")
    """Parameters that say how many milliseconds init() and exit() take, instead of the two figures above."""

    @property
    def path(self) -> str:
        """Absolute path of the file; empty when built in."""
        if self.builtin:
            return ""
        root = "" if self.folder.startswith("updates") else "kernel/"
        return f"/lib/modules/{RELEASE}/{root}{self.folder}/{self.name}.ko"


def parameter(
    name: str, kind: str, value: str = "0", description: str = "", mode: int = 0o444, length: int = 1024
) -> SimulatedParameter:
    """Write one parameter in one line."""
    return SimulatedParameter(name, kind, description, value, mode, length=length)


def fault_modules() -> tuple[SimulatedModule, ...]:
    """One module for every fault, and some for what tests need besides."""
    error = SimulatedParameter("error", "int", "what init() answers: 0, or a negative errno", "-5")
    oops = (
        "BUG: kernel NULL pointer dereference, address: 0000000000000000",
        "#PF: supervisor write access in kernel mode",
        "Oops: 0002 [#1] PREEMPT SMP PTI",
    )
    modules = (
        SimulatedModule("good", "Loads and unloads; needs nothing, does nothing"),
        SimulatedModule("dep_a", "The bottom of a chain"),
        SimulatedModule("dep_b", "The middle of a chain", depends=("kmodd_test_dep_a",)),
        SimulatedModule("dep_c", "The top of a chain", depends=("kmodd_test_dep_b",)),
        SimulatedModule("soft_pre", "Loaded before soft by its soft dependency"),
        SimulatedModule("soft_post", "Loaded after soft by its soft dependency"),
        SimulatedModule(
            "soft", "Soft dependencies", softdep_pre=("kmodd_test_soft_pre",), softdep_post=("kmodd_test_soft_post",)
        ),
        SimulatedModule("alias_twin", "Shares an alias", aliases=("kmodd-test-shared",)),
        SimulatedModule("alias_twin2", "Shares an alias", aliases=("kmodd-test-shared",)),
        SimulatedModule(
            "fail",
            "init() says why in the kernel log and answers the errno of the parameter error",
            parameters=(error,),
            init=Fault(from_parameter="error", log=("kmodd_test_fail: the flux capacitor is not charged",)),
        ),
        SimulatedModule("needs_fail", "Needs fail", depends=("kmodd_test_fail",)),
        SimulatedModule("nodev", "init() answers ENODEV without a word", init=Fault(errno=errno.ENODEV)),
        SimulatedModule(
            "opnotsupp",
            "init() answers EOPNOTSUPP",
            init=Fault(errno=errno.EOPNOTSUPP, log=("kmodd_test_opnotsupp: the processor lacks a feature",)),
        ),
        SimulatedModule("init_hang", "init() hangs for ever", init=Fault(FaultKind.HANG, for_ever=True)),
        SimulatedModule(
            "init_wait",
            "init() hangs until it is released",
            parameters=(SimulatedParameter("error", "int", "what init() answers in the end", "0"),),
            init=Fault(FaultKind.HANG, from_parameter="error"),
        ),
        SimulatedModule("init_oops", "init() writes through a null pointer", init=Fault(FaultKind.OOPS, log=oops)),
        SimulatedModule("exit_hang", "exit() hangs for ever", exit=Fault(FaultKind.HANG, for_ever=True)),
        SimulatedModule("exit_wait", "exit() hangs until it is released", exit=Fault(FaultKind.HANG)),
        SimulatedModule("exit_oops", "exit() writes through a null pointer", exit=Fault(FaultKind.OOPS, log=oops)),
        SimulatedModule("permanent", "Has no exit()", permanent=True),
        SimulatedModule(
            "self_ref",
            "Holds a reference to itself while its parameter hold is true",
            parameters=(parameter("hold", "bool", "Y", "hold a reference", 0o644),),
            held_by="hold",
        ),
        SimulatedModule(
            "slow",
            "init() takes ms milliseconds, exit() takes exit_ms",
            parameters=(
                parameter("ms", "uint", "1000", "milliseconds init() takes"),
                parameter("exit_ms", "uint", "0", "milliseconds exit() takes", 0o644),
            ),
            slept_in=("ms", "exit_ms"),
        ),
        SimulatedModule(
            "mounted",
            "In use by a mount as soon as it is live",
            users=(
                User(
                    *("mount", "/mnt", "/dev/kmodd_test_blk0"),
                    file="/etc/fstab",
                    line=7,
                    remedy=Remedy.UNMOUNT,
                    target="/mnt",
                ),
            ),
        ),
        SimulatedModule(
            "params",
            "A parameter of every type and mode; level accepts 0 to 9 only and keeps even numbers",
            parameters=(
                parameter("a_bool", "bool", "N", "a bool", 0o644),
                parameter("an_invbool", "invbool", "N", "a bool that is kept inverted", 0o644),
                parameter("a_byte", "byte", "1", "a byte", 0o644),
                parameter("a_short", "short", "-2", "a short", 0o644),
                parameter("a_ushort", "ushort", "2", "an unsigned short", 0o644),
                parameter("an_int", "int", "-3", "an int", 0o644),
                parameter("a_uint", "uint", "3", "an unsigned int", 0o644),
                parameter("a_long", "long", "-4", "a long", 0o644),
                parameter("a_ulong", "ulong", "4", "an unsigned long", 0o644),
                parameter("a_ullong", "ullong", "5", "an unsigned long long", 0o644),
                parameter("a_hexint", "hexint", "0x1f", "an unsigned int shown in hexadecimal", 0o644),
                parameter("a_charp", "charp", "nothing", "a text of any length", 0o644),
                parameter("a_string", "string", "short", "a text of at most 15 characters", 0o644, 15),
                parameter("an_array", "array of int", "1,2", "one to four ints", 0o644, 4),
                parameter("charps", "array of charp", "", "up to three texts", 0o444, 3),
                parameter("read_only", "int", "6", "can be given when loading, not changed later"),
                parameter("secret", "int", "7", "for root's eyes only", 0o600),
                parameter("root_read_only", "int", "8", "for root's eyes only, not changed later", 0o400),
                parameter("hidden", "int", "9", "has no file", 0),
                parameter("without_description", "int", "10", "", 0o644),
                SimulatedParameter("level", "int", "0 to 9, kept even", "4", 0o644, limit=(0, 9), multiple_of=2),
            ),
        ),
        SimulatedModule(
            "bad_symbol",
            "Needs a symbol the kernel does not have",
            init=Fault(
                errno=errno.ENOENT,
                log=("kmodd_test_bad_symbol: Unknown symbol kmodd_nowhere (err -2)",),
                before_init=True,
            ),
        ),
        SimulatedModule(
            "bad_file",
            "A file that is cut short",
            init=Fault(errno=errno.ENOEXEC, log=("Invalid ELF section header overflow",), before_init=True),
        ),
        SimulatedModule(
            "bad_signature",
            "A file whose signature does not fit",
            init=Fault(errno=errno.EKEYREJECTED, before_init=True),
        ),
        SimulatedModule(
            "wrong_kernel",
            "A file for a kernel with other flags",
            init=Fault(
                errno=errno.ENOEXEC,
                log=(
                    (
                        f"kmodd_test_wrong_kernel: version magic '{RELEASE} SMQ preempt mod_unload modversions ' should be "
                        f"'{RELEASE} SMP preempt mod_unload modversions '"
                    ),
                ),
                before_init=True,
            ),
        ),
    )
    # The names are those of the modules that the tests build for the real kernel, so that one test can serve both.
    return tuple(
        replace(module, name=f"kmodd_test_{module.name}", folder="updates/kmodd-test", signed=False, intree=False)
        for module in modules
    )
