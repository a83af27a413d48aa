# SPDX-License-Identifier: LGPL-2.1-or-later
"""Checks parameters of callers and of `options` lines against the types that a module declares.

The rules are those of kernel/params.c and lib/kstrtox.c. A type that is not in the table is the module's own, and only the
kernel can judge its values.
"""

import re
import sys
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from kmodd.errors import BadParameter, Evidence, UnknownParameter
from kmodd.fast_dataclass import dataclass
from kmodd.model import ModuleInfo, ParameterInfo, Rule
from kmodd.model.arguments import Arguments, encoded, key, read, shown, spell
from kmodd.names import ModuleName
from kmodd.suggestions import did_you_mean

Pairs = tuple[tuple[str, str], ...]
"""Parameters of a caller, which always have a value."""

UNSET = "(null)"
"""What the kernel shows of a text that was never set (param_get_charp in kernel/params.c); given back it would be set to it."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """A parameter that an `options` line gives."""

    name: str
    value: str | None
    """None is a name without `=`."""
    rule: Rule


@dataclass(frozen=True, slots=True)
class Options:
    """All `options` lines about a module."""

    assignments: tuple[Assignment, ...] = ()
    end: Rule | None = None
    """The line after which the kernel reads no parameter more: by `--`, or by a quote that is left open."""
    open: bool = False
    """It is a quote."""

    @property
    def pairs(self) -> Arguments:
        """Names and values in the kernel's order."""
        return tuple((each.name, each.value) for each in self.assignments)

    @property
    def unspeakable(self) -> bool:
        """The quote that is left open makes a parameter that cannot be spelled in another way."""
        try:
            spell(self.pairs)
        except ValueError:
            return True
        return False


NO_OPTIONS = Options()


def read_options(rules: Sequence[Rule]) -> Options:
    """Read `options` lines in their order.

    libkmod joins them by a space (kmod_module_get_options) and adds one behind them (module_options_concat), which a quote
    left open takes in. A parameter belongs to the line it begins on.
    """
    rules = [rule for rule in rules if rule.kind == "options"]
    joined, starts = b"", []
    for rule in rules:
        starts.append(len(joined))
        joined += encoded(rule.value) + b" "
    assignments: list[Assignment] = []
    for word in read(joined):
        rule = rules[bisect_right(starts, word.start) - 1]
        if word.ends:
            return Options(tuple(assignments), rule)
        assignments.append(Assignment(key(word.name), word.value, rule))
        if word.open:
            return Options(tuple(assignments), rule, open=True)
    return Options(tuple(assignments))


def effective(pairs: Iterable[tuple[str, str | None]]) -> Arguments:
    """Keep the last value of each parameter, which is the one the kernel keeps, in the order of the last mention."""
    kept: dict[str, str | None] = {}
    for name, value in pairs:
        kept.pop(name, None)
        kept[name] = value
    return tuple(kept.items())


CHARP_MAX = 1024
"""Bytes; param_set_charp refuses more."""

ALWAYS_KNOWN = frozenset({"async_probe", "dyndbg"})
"""Parameters every module accepts without declaring them (unknown_module_param_cb in kernel/module/main.c)."""

_ARRAY = "array of "
# base 0 of _parse_integer_fixup_radix: 0x and a hex digit, a leading zero for octal, else decimal.
_NUMBER = re.compile(r"(?P<sign>[+-]?)(?:0[xX](?P<hex>[0-9a-fA-F]+)|0(?P<oct>[0-7]*)|(?P<dec>[1-9][0-9]*))")
_LONG_BITS = sys.maxsize.bit_length() + 1

_RANGES: dict[str, tuple[int, int]] = {
    "byte": (0, 2**8 - 1),
    "short": (-(2**15), 2**15 - 1),
    "ushort": (0, 2**16 - 1),
    "int": (-(2**31), 2**31 - 1),
    "uint": (0, 2**32 - 1),
    "hexint": (0, 2**32 - 1),
    "long": (-(2 ** (_LONG_BITS - 1)), 2 ** (_LONG_BITS - 1) - 1),
    "ulong": (0, 2**_LONG_BITS - 1),
    "ullong": (0, 2**64 - 1),
}
_BOOLS = frozenset({"bool", "invbool", "bint", "bool_enable_only"})
_FLAGS = frozenset({"bool", "bint", "bool_enable_only"})
KNOWN_TYPES = frozenset(_RANGES) | _BOOLS | {"charp", "string"}
"""Types whose setter is the kernel's own."""


def is_standard(kind: str) -> bool:
    """Tell whether values of this type are read and written by the kernel's own functions."""
    return kind.removeprefix(_ARRAY) in KNOWN_TYPES


def expectation(kind: str, value: str) -> str:
    """Say what the type takes instead of this value (`a whole number from 0 to 255`); empty when the value is fine."""
    if kind.startswith(_ARRAY):
        element = kind.removeprefix(_ARRAY)
        wanted = next((text for part in value.split(",") if (text := expectation(element, part))), "")
        return f"a comma-separated list, each {wanted}" if wanted else ""
    if kind in _BOOLS:
        return "" if _reads_as_bool(value) is not None else "1, 0, y, n, on or off"
    if kind in _RANGES:
        low, high = _RANGES[kind]
        number = parse_number(value)
        if number is not None and low <= number <= high and not (low == 0 and value.startswith("-")):
            return ""
        return f"an integer from {low} to {high}"
    if kind == "charp" and len(value.encode("utf-8", "surrogatepass")) > CHARP_MAX:
        return f"a string of at most {CHARP_MAX} bytes"
    return ""


def is_number(kind: str) -> bool:
    """Tell whether it is a number or a truth value, or an array of these."""
    return kind.removeprefix(_ARRAY) in KNOWN_TYPES - {"charp", "string"}


def takes_no_value(kind: str) -> bool:
    """Tell whether the name alone sets it (KERNEL_PARAM_OPS_FL_NOARG in kernel/params.c); a type that is not known may."""
    return kind in _FLAGS or not is_standard(kind)


def parse_number(text: str) -> int | None:
    """Read a number as kstrtoll with base 0 does; None when it is none."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    if match["hex"]:
        number = int(match["hex"], 16)
    elif match["dec"]:
        number = int(match["dec"])
    else:
        number = int(match["oct"] or "0", 8)
    return -number if match["sign"] == "-" else number


def same_value(kind: str, value: str, live: str) -> bool:
    """Tell whether what a caller gives means what the kernel shows now."""
    if kind.startswith(_ARRAY):
        parts, shown = value.split(","), live.split(",")
        element = kind.removeprefix(_ARRAY)
        return len(parts) == len(shown) and all(map(same_value, [element] * len(parts), parts, shown))
    if value == live:
        return True
    if kind in _BOOLS:
        truth = _reads_as_bool(value)
        return truth is not None and truth == _reads_as_bool(live)
    if kind in _RANGES:
        number = parse_number(value)
        return number is not None and number == parse_number(live)
    return False


def same_setting(kind: str, value: str, setting: str | None) -> bool:
    """Tell whether the value means what an `options` line says, where a name alone sets a flag."""
    return same_value(kind, value, "1" if setting is None and takes_no_value(kind) else setting or "")


def _reads_as_bool(text: str) -> bool | None:
    # kstrtobool looks at the first letter, and at the second after an `o`.
    head = text[:1].lower()
    # `enable` and `disable` are understood by newer kernels only: left to the kernel, so not refused here.
    if head and head in "y1te":
        return True
    if head and head in "n0fd":
        return False
    if head == "o":
        return {"n": True, "f": False}.get(text[1:2].lower())
    return None


_SPACED = re.compile(r"[ \t]*=[ \t]*")
_UNEQUAL = re.compile(r"(?<![^ \t])([\w-]+)(?::[ \t]*|[ \t]+)(?=[^ \t=]+(?:[ \t]|\Z))")
_SEPARATED = re.compile(r"[ \t]*[,;]+(?:[ \t]+|(?=[A-Za-z]\w*=)|\Z)")
_QUOTED = re.compile(r"'([^'\"]*)'")
NO_FLAG = ": it is not a flag"
"""The reason for a parameter without a value, if nothing better is known."""
REPAIRED_MAX = 1024
"""Characters of a line that is repaired."""


def parameter_types(info: ModuleInfo) -> dict[str, str]:
    """Type of each parameter that the file declares, by its name with `_`; empty where no type is declared."""
    return {key(parameter.name): parameter.type for parameter in info.parameters}


def declared(info: ModuleInfo) -> dict[str, ParameterInfo]:
    """The parameters of a module, by their names with `_`."""
    return {key(parameter.name): parameter for parameter in info.parameters}


def checked_type(parameter: ParameterInfo) -> str:
    """Its type, and empty where functions of the module's own judge the values: these are left to the kernel."""
    return "" if parameter.own else parameter.type


def check_parameters(info: ModuleInfo, parameters: Pairs, live: Collection[str] = ()) -> None:
    """Raise UnknownParameter or BadParameter for what the kernel would ignore or refuse.

    `live` names the parameters of the loaded module: the kernel knows them, whatever the file says.
    """
    declarations = declared(info)
    for name, value in parameters:
        if name in ALWAYS_KNOWN or name in live:
            continue
        if name not in declarations:
            raise UnknownParameter(
                f"{info.name} has no parameter {name}",
                module=info.name,
                argument=name,
                evidence=Evidence(
                    parameter=name,
                    hint=did_you_mean(name, declarations) or f"kmodctl show {info.name} lists its parameters",
                ),
            )
        check_value(info.name, name, checked_type(declarations[name]), value)


def check_value(module: ModuleName, parameter: str, kind: str, value: str) -> None:
    """Raise BadParameter when the parameter's type cannot hold the value."""
    wanted = expectation(kind, value)
    if wanted:
        raise BadParameter(
            f"parameter {parameter} of {module} takes {wanted}",
            module=module,
            argument=parameter,
            evidence=Evidence(parameter=parameter, hint=f"kmodctl show {module} lists its parameters"),
        )


def check_options(info: ModuleInfo, options: Options, given: Pairs = ()) -> None:
    """Raise BadParameter, with file and line, where the kernel would refuse the module for what `options` lines give it.

    Only values that count are looked at, and only where the type is known. Parameters the module does not have are left alone:
    the kernel ignores them. `given` are a caller's, which stand behind the lines.
    """
    if options.end is not None and (given or options.unspeakable):
        raise ended_early(info.name, options.end, options)
    declarations = declared(info)
    last = {each.name: each for each in options.assignments}
    for name, value in effective((*options.pairs, *given)):
        each = last.get(name)
        if each is None or each.value != value or name not in declarations:
            continue
        fault = value_fault(info.name, each, declarations[name])
        if fault:
            rule = each.rule
            better, _ = repaired(rule, declarations)
            line = f"options {rule.module} {shown(better)}" if better else ""
            place = f"{rule.file}, line {rule.line}"
            hint = f"write in {place}: {line}" if line else f"change the options line in {place}"
            raise BadParameter(
                f"{place}: {fault}" + (f"; write {line}" if line else ""),
                module=info.name,
                argument=name,
                evidence=Evidence(
                    parameter=name, file=rule.file, line=rule.line, rule=rule.told, rule_kind=rule.kind, hint=hint
                ),
            )


def repaired(rule: Rule, declarations: Mapping[str, ParameterInfo]) -> tuple[str, str]:
    """The parameters of an `options` line as they were meant, and what is wrong with them as a clause.

    Both are empty where no simple change makes of it what the kernel takes, or not everyone may read the line.
    """
    text = rule.value.strip()
    if not rule.public or len(text) > REPAIRED_MAX or '"' in text:
        return "", ""
    folded = {name.lower(): name for name in declarations}

    def spelled(match: re.Match[str]) -> str:
        return folded.get(key(match[0]).lower(), match[0])

    names = rf"(?<![^ \t])(?:{re.escape(rule.module)}|{re.escape(rule.module.replace('_', '-'))})\."
    for better, why in (
        (_SPACED.sub("=", text), "no spaces are allowed around ="),
        (_UNEQUAL.sub(lambda match: f"{match[1]}=" if key(match[1]) in declarations else match[0], text), "its value follows ="),
        (_SEPARATED.sub(" ", text).strip(), "parameters are separated by spaces"),
        (_QUOTED.sub(lambda match: match[1] if " " not in match[1] else f'"{match[1]}"', text), "only double quotes are recognized"),
        (re.sub(names, "", text), f"parameters are named without {rule.module} here"),
        (re.sub(r"(?<![^ \t])[\w-]+(?==|[ \t]|\Z)", spelled, text), "names are compared exactly"),
    ):  # fmt: skip
        if better != text and _is_sound(replace(rule, value=better), declarations):
            return better, why
    return "", ""


def _is_sound(rule: Rule, declarations: Mapping[str, ParameterInfo]) -> bool:
    options = read_options([rule])
    return options.end is None and all(
        each.name in ALWAYS_KNOWN
        or (each.name in declarations and not value_fault(rule.module, each, declarations[each.name], likely=True))
        for each in options.assignments
    )


def value_fault(module: str, each: Assignment, parameter: ParameterInfo, *, likely: bool = False) -> str:
    """Say why the kernel refuses the value (`parameter max_loop of loop takes a whole number …`); empty when it does not.

    `likely` also says it of what is shown as a number and is set by the module's own functions, which could take a word.
    """
    if each.value is None:
        flag = parameter.flag if parameter.own else takes_no_value(parameter.type)
        if flag is not False:
            return ""
        spaced = any(rest.startswith("=") for rest in _words_after(each))
        reason = ": no spaces are allowed around =" if spaced else NO_FLAG
        return f"parameter {each.name} of {module} is given no value{reason}"
    kind = parameter.shown_as if likely and parameter.own else checked_type(parameter)
    wanted = expectation(kind, each.value)
    if not wanted:
        return ""
    comment = ": put comments on a separate line" if "#" in each.value else ""
    return f"parameter {each.name} of {module} takes {wanted}{comment}"


def end_of(options: Options) -> str:
    """Say what keeps the kernel from reading the parameters behind `options.end`."""
    if options.open:
        return "has an open quote, which includes every following parameter"
    return "has a --, and the kernel reads no parameter after it"


def ended_early(module: ModuleName, rule: Rule, options: Options) -> BadParameter:
    """Make the error for parameters that would stand behind the line, which is the last that the kernel reads."""
    hint = "close the quote" if options.open else "remove the --"
    return BadParameter(
        f"{rule.file}, line {rule.line} {end_of(options)}",
        module=module,
        evidence=Evidence(
            file=rule.file,
            line=rule.line,
            rule=rule.told,
            rule_kind=rule.kind,
            hint=f"{hint} in {rule.file}, line {rule.line}",
        ),
    )


def _words_after(each: Assignment) -> list[str]:
    """What follows a name in its line."""
    names = [assignment.name for assignment in read_options([each.rule]).assignments]
    return names[names.index(each.name) + 1 :][:1] if each.name in names else []
