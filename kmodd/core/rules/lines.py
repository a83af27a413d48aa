# SPDX-License-Identifier: LGPL-2.1-or-later
"""Findings about lines that are not read as intended, and the lines to write instead."""

import re
from collections.abc import Iterator, Sequence, Set
from itertools import islice, takewhile

from kmodd.model import Rule
from kmodd.model.arguments import shown
from kmodd.model.rules import Finding, Replacement
from kmodd.names import is_module_name
from kmodd.patterns import matches
from kmodd.suggestions import another_name, did_you_mean, near, several_names

WORDS = ("alias", "blacklist", "install", "options", "remove", "softdep")
"""What a line of modprobe.d begins with."""
SHOWN_MAX = 200
"""Characters of a line that are quoted in a sentence."""
LINE_MAX = 1024
"""Characters of a line of modules-load.d that is looked at."""
NAMES_MAX = 8
"""Names of one line that are looked at: each is compared with all modules there are."""

_LEAST = {"blacklist": 2}
"""Words that a line has at least; 3 of the others."""
_TAKES = {
    "alias": "alias takes a name and a module",
    "blacklist": "blacklist takes the name of a module",
    "install": "install takes a module and a command",
    "options": "options takes a module and its parameters",
    "remove": "remove takes a module and a command",
    "softdep": "softdep takes a module, and names behind pre: and post:",
}
_LOADERS = frozenset({"modprobe", "insmod", "/sbin/modprobe", "/usr/sbin/modprobe", "/sbin/insmod", "/usr/sbin/insmod"})
_NOTHING = dict.fromkeys("\ufeff\u200b\u200c\u200d\u2060\u00ad\r", "")
_BLANK = dict.fromkeys(
    "\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000", " "
)
_PRINT = {
    "\u201c": '"',
    "\u201d": '"',
    "\u201e": '"',
    "\u2018": "'",
    "\u2019": "'",
    "\u2010": "-",
    "\u2011": "-",
    "\u2013": "-",
}
# What editors of other systems, word processors and web pages put into a text that looks the same.
_ODD = str.maketrans({**_NOTHING, **_BLANK, **_PRINT})
_NAMED = {"\ufeff": "a byte order mark", "\r": "a carriage return", "\u00a0": "a no-break space"}
_UTF_16 = "\ufffd\ufffd"
"""The byte order mark of UTF-16, whose two bytes are not UTF-8."""
_NO_COMMENT = re.compile(r"(//|;|--|<!--)\s*")
_COMMENT = re.compile(r"#|(?<=\s)(?://|;)|(?<=\s)--(?=\s)")
"""What looks like the beginning of a comment behind something else."""
_KIND_OF_SOFTDEP = re.compile(r"(?:(?<=\s)|\A)(pre|post)\s*:\s*", re.IGNORECASE)
_KIND_WITHOUT_COLON = re.compile(r"(?:(?<=\s)|\A)(pre|post)(?=\s)", re.IGNORECASE)
_WILD = frozenset("*?[")
_AROUND = "\"'`,;:()[]{}<>\\"
_SUFFIX = re.compile(r"\.ko(?:\.gz|\.xz|\.zst)?$")
_PUNCTUATION = "\"',;:\\"
"""What surrounds names that are written as in a text or another file."""


def odd_character(text: str) -> str:
    """Name the first character that looks like another or like nothing; empty when there is none."""
    for char in text:
        if char.translate(_ODD) != char:
            return _NAMED.get(char, f"the character U+{ord(char):04X}")
    return ""


def repaired(text: str) -> str:
    """The text with what such characters look like in their place."""
    return " ".join(text.translate(_ODD).split())


def replacement(file: str, text: str) -> Replacement:
    """A line to write, safe to show."""
    return Replacement(file, _safe(text))


def on_command_line(lines: Sequence[Replacement]) -> tuple[Replacement, ...]:
    """Lines of modprobe.d as words of the kernel's command line, on which they have to stand."""
    words = [line.text.split() for line in lines]
    names = [word[1] for word in words if word[0] == "blacklist"]
    listed = [f"modprobe.blacklist={','.join(names)}"] if names else []
    options = [
        each if "." in each.partition("=")[0] else f"{word[1]}.{each}" for line, word in zip(lines, words, strict=True) for each in word[2:]
        if word[0] == "options" and '"' not in line.text
    ]  # fmt: skip
    others = [line.text for line, word in zip(lines, words, strict=True) if word[0] not in WORDS]
    return tuple(replacement(lines[0].file, text) for text in (*listed, " ".join(options), *others) if text)


def options_file(module: str) -> str:
    """Where the administrator writes a rule about a module that nothing else decides the place of."""
    return f"/etc/modprobe.d/{module}.conf" if is_module_name(module) else "/etc/modprobe.d/local.conf"


def before(file: str, module: str) -> str:
    """A file of the administrator's that is read before this one; empty where none has a plain name."""
    name = f"00-{module}.conf"
    return f"/etc/modprobe.d/{name}" if name.encode() < file.rpartition("/")[2].encode() else ""


def after(file: str, module: str) -> str:
    """A file of the administrator's that is read after this one."""
    name, last = f"zz-{module}.conf", file.rpartition("/")[2]
    if name.encode() <= last.encode():
        # `_` is read behind the dot of `.conf`.
        name = f"{last.rpartition('.')[0]}_{module}.conf"
    return f"/etc/modprobe.d/{name}"


def about_ignored(text: str, file: str, modules: Set[str]) -> Finding | None:
    """What a line of modprobe.d is that modprobe reads over; None when nothing is lost by that."""
    if text.lstrip("\t ").startswith("#"):
        return _taken_in(text, file)
    if text.startswith(_UTF_16):
        return Finding("odd-character", "modprobe ignores this line: the file is UTF-16 text, save it as UTF-8")
    plain = repaired(text)
    words = plain.split()
    if not words or plain.startswith("#"):
        return None
    odd = odd_character(text)
    if odd and _is_complete(words):
        return Finding(
            "odd-character", f"modprobe ignores this line: it contains {odd}", instead=(replacement(file, plain),)
        )
    why, lines = _why_ignored(words, file, modules)
    return Finding("ignored-line", f"modprobe ignores this line: {why}", instead=lines)


def _taken_in(text: str, file: str) -> Finding:
    comment, *rest = text.split("\\\n")
    lines = [comment.rstrip("\\ \t"), *(line.strip() for line in rest)]
    return Finding(
        "ignored-line",
        f"modprobe ignores the next line too, {_quoted(lines[1])}: the backslash at the end makes it part of this comment",
        instead=tuple(replacement(file, line) for line in lines if line),
    )


def _why_ignored(words: Sequence[str], file: str, modules: Set[str]) -> tuple[str, tuple[Replacement, ...]]:
    word, rest = words[0], words[1:]
    if word in WORDS:
        if word == "options" and len(rest) == 1 and (line := _from_command_line(rest, modules)):
            return "it has the syntax of the kernel command line", (replacement(file, line),)
        return "unbalanced brackets" if _is_complete(words) else _TAKES[word], ()
    if comment := _NO_COMMENT.match(word):
        return "a comment begins with #", (replacement(file, f"# {' '.join(words).removeprefix(comment[0]).strip()}"),)
    meant = _meant(word, modules)
    if meant and rest and all("=" in each for each in rest):
        line = f"options {meant} {' '.join(rest)}"
        return "it lacks the word options", (replacement(file, line),)
    if meant and not rest:
        place = f"/etc/modules-load.d/{meant}.conf"
        return "modules to load at boot belong in modules-load.d", (replacement(place, meant),)
    name, sign, value = word.partition("=")
    if sign and name.rpartition(".")[2] in ("blacklist", "module_blacklist") and value:
        lines = tuple(replacement(file, f"blacklist {each}") for each in value.split(",") if each)
        return "it has the syntax of the kernel command line", lines
    if line := _from_command_line(words, modules):
        return "it has the syntax of the kernel command line", (replacement(file, line),)
    if word in _LOADERS:
        names = [each for each in rest if not each.startswith("-") and "=" not in each]
        places = tuple(replacement(f"/etc/modules-load.d/{each}.conf", each) for each in names if is_module_name(each))
        return "modules to load at boot belong in modules-load.d", places
    close = (word.lower(),) if word.lower() in WORDS else near(word, WORDS)
    corrected = [close[0], *rest] if len(close) == 1 else []
    lines = (replacement(file, " ".join(corrected)),) if _is_complete(corrected) else ()
    hint = did_you_mean(close[0], WORDS) if close else ""
    return f"{_quoted(word)} is not a known keyword{f': {hint}' if hint else ''}", lines


def _from_command_line(words: Sequence[str], modules: Set[str]) -> str:
    """The `options` line for `MODULE.PARAMETER=VALUE` and what follows it; empty for other words."""
    name, sign, _ = words[0].partition("=")
    module, dot, parameter = name.partition(".")
    if not (sign and dot and parameter and module in modules):
        return ""
    return f"options {module} {' '.join((words[0].removeprefix(f'{module}.'), *words[1:]))}"


def _is_complete(words: Sequence[str]) -> bool:
    return bool(words) and words[0] in WORDS and len(words) >= _LEAST.get(words[0], 3)


def about_autoload(text: str, file: str, modules: Set[str]) -> Finding | None:
    """What a line of modules-load.d is that holds more than one name, or something else than a name; None for a name."""
    if len(text) > LINE_MAX:
        return None
    plain = repaired(text)
    odd = odd_character(text)
    line, sign, comment = _without_comment(plain)
    words = [word for word in line.split() if word not in _LOADERS and not word.startswith("-")]
    if len(words) == 1 and not _WILD.isdisjoint(words[0]):
        return _about_loading_a_pattern(words[0], file, modules, comments=_comment_lines(file, comment))
    comments = _comment_lines(file, comment)
    if odd:
        lines = tuple(replacement(file, word) for word in words)
        return Finding(
            "odd-character",
            f"this line contains {odd}, and systemd treats it as part of the name",
            instead=comments + lines,
        )
    if len(words) > 1 and words[0] in WORDS:
        return _misplaced(words, comments)
    if len(words) == 1 and words[0] == text and not several_names(text) and "=" not in text:
        return None
    names: list[str] = []
    parameters: dict[str, list[str]] = {}
    for word in words:
        name, value, _ = word.partition("=")
        module, dot, parameter = name.partition(".")
        if value and dot and parameter and _meant(module, modules):  # as on the kernel command line
            names.append(module)
            parameters.setdefault(module, []).append(word.removeprefix(f"{module}."))
        elif value and name and names:
            parameters.setdefault(names[-1], []).append(word)
        else:
            names += several_names(word) or (word.strip(_PUNCTUATION),)
    names = [_meant(name, modules) or name for name in names[:NAMES_MAX]]
    if not all(map(is_module_name, names)) or not names:
        return None
    kind, why = "several-names", "a line of modules-load.d is one name"
    if parameters:
        kind, why = "misplaced", "a line of modules-load.d is a name only: parameters belong in modprobe.d"
    elif sign and len(names) == 1:
        kind, why = "comment", f"{sign} does not start a comment here: put comments on a separate line"
    lines = tuple(replacement(file, name) for name in dict.fromkeys(names))
    moved = tuple(
        replacement(options_file(module), f"options {module} {' '.join(values)}")
        for written, values in islice(parameters.items(), NAMES_MAX)
        for module in (_meant(written, modules) or written,)
    )
    return Finding(kind, f"systemd loads nothing for this line: {why}", instead=comments + lines + moved)


def _without_comment(text: str) -> tuple[str, str, str]:
    """What stands before something that looks like a comment, the sign that it begins with, and the comment."""
    match = _COMMENT.search(text)
    return (text[: match.start()], match[0], text[match.end() :].strip()) if match else (text, "", "")


def _comment_lines(file: str, comment: str) -> tuple[Replacement, ...]:
    return (replacement(file, f"# {comment}"),) if comment else ()


def _about_loading_a_pattern(
    pattern: str, file: str, modules: Set[str], *, comments: tuple[Replacement, ...]
) -> Finding:
    """An alias of the kernel's own has no star in it, so what has one is meant as a pattern."""
    plain = pattern.replace("-", "_")
    alike = sorted(module for module in modules if matches(plain, module))
    lines = tuple(replacement(file, module) for module in alike) if len(alike) <= NAMES_MAX else ()
    why = "a line of modules-load.d is a name, not a pattern"
    return Finding("pattern", f"systemd loads nothing for this line: {why}", instead=comments + lines if lines else ())


def _misplaced(words: Sequence[str], comments: tuple[Replacement, ...]) -> Finding:
    place = options_file(words[1])
    lines = [" ".join(words)]
    if words[0] == "blacklist":
        lines = [f"blacklist {name}" for name in words[1:]]
    return Finding(
        "misplaced",
        f"systemd loads nothing for this line: {words[0]} belongs in modprobe.d",
        instead=comments + tuple(replacement(place, line) for line in lines),
    )


def about_words(rule: Rule, modules: Set[str]) -> Iterator[Finding]:
    """Findings about the words of a rule in effect, apart from the values it sets."""
    name = rule.module
    value = rule.value.replace("\r", "") if rule.kind in ("options", "softdep") else rule.value
    odd = odd_character(name) or odd_character(value)
    if odd:
        line = repaired(f"{rule.kind} {name} {value}")
        part = "the name" if odd_character(name) else "what follows the name"
        yield Finding("odd-character", f"{odd} is part of {part}", instead=(replacement(rule.file, line),))
    elif rule.kind == "blacklist":
        yield from _about_list(rule, modules)
    elif rule.kind == "softdep":
        yield from _about_softdep(rule)
    elif rule.kind == "install":
        yield from _about_command(rule, modules)


def _about_command(rule: Rule, modules: Set[str]) -> Iterator[Finding]:
    """`install` takes one name: names behind it are the command, which the shell does not find."""
    words = rule.value.split()
    others = list(takewhile(lambda word: word.replace("-", "_") in modules, words[:NAMES_MAX]))
    command = " ".join(words[len(others) :])
    if others and command:
        lines = tuple(replacement(rule.file, f"install {name} {command}") for name in (rule.module, *others))
        yield Finding(
            "several-names",
            f"install takes one name: the command for {rule.module} is {_quoted(rule.value.strip())}",
            instead=lines,
        )


def name_within(written: str) -> str:
    """The name in a word that no module can be called, such as one in quotes or a path; empty for other words."""
    if ":" in written.rstrip(":"):
        return ""  # an alias of a device, which may hold any character
    name = _SUFFIX.sub("", written.rpartition("/")[2].strip(_AROUND))
    return name if name != written and is_module_name(name) else ""


def _about_list(rule: Rule, modules: Set[str]) -> Iterator[Finding]:
    """`blacklist` takes one name, and reads over what follows it."""
    first = several_names(rule.module) or (rule.module.strip(_PUNCTUATION),)
    rest, _, comment = _without_comment(" ".join(["", *rule.text.split(maxsplit=NAMES_MAX + 2)[2 : NAMES_MAX + 2]]))
    others = [
        name.strip(_PUNCTUATION)
        for word in rest.split()
        for name in several_names(word) or (word,)
        if word not in WORDS
    ]
    if len(first) == 1 and not any(_meant(name, modules) for name in others[:NAMES_MAX]):
        return  # what is no module is a remark, which does no harm
    names = tuple(dict.fromkeys((*first, *others)))[:NAMES_MAX]
    if len(names) > 1 and all(map(is_module_name, names)):
        lines = tuple(replacement(rule.file, f"blacklist {_meant(name, modules) or name}") for name in names)
        acts = f"{rule.module} alone" if first == (rule.module,) else "no module"
        yield Finding(
            "several-names",
            f"blacklist takes one name: this line acts on {acts}",
            instead=_comment_lines(rule.file, comment) + lines,
        )


def _about_softdep(rule: Rule) -> Iterator[Finding]:
    module = rule.module.rstrip(":")
    plain = " ".join(_KIND_OF_SOFTDEP.sub(lambda match: f" {match[1].lower()}: ", rule.value).split())
    words = plain.split()
    if not words:
        return
    why = ""
    if not {"pre:", "post:"} & set(words):
        plain = plain.removeprefix(": ")
        spelled = " ".join(_KIND_WITHOUT_COLON.sub(lambda match: f"{match[1].lower()}:", plain).split())
        why = "it names no soft dependency: pre: or post: is missing"
        plain = spelled if spelled != plain else f"pre: {plain}"
    elif plain.split() != rule.value.split():
        why = "pre: and post: are separate words, followed by a space"
    elif words[0] not in ("pre:", "post:"):
        why, plain = f"modprobe ignores {_quoted(words[0])}, which comes before pre: and post:", ""
    elif module != rule.module:
        why = "the colon is part of the name"
    elif any(several_names(word) or word[-1] in ",;" for word in words):
        why = "commas are part of a name: separate names with spaces"
    plain = " ".join(re.sub("[,;]+", " ", plain).split())
    if why:
        lines = (replacement(rule.file, f"softdep {module} {plain}"),) if plain and is_module_name(module) else ()
        yield Finding("bad-softdep", why, instead=lines)


def begins_comment(word: str) -> str:
    """The sign with which a word looks like the beginning of a comment; empty for another."""
    match = _COMMENT.match(f" {word} ", 1)
    return match[0] if match else ""


def without_comment(rule: Rule) -> tuple[Replacement, ...]:
    """The `options` line with what looks like a comment on a separate line; empty where a quote may hold it."""
    value, sign, comment = _without_comment(rule.value)
    if not sign or '"' in value:
        return ()
    line = (replacement(rule.file, f"options {rule.module} {value.strip()}"),) if value.strip() else ()
    return _comment_lines(rule.file, comment) + line


def with_parameter(rule: Rule, written: str, meant: str) -> tuple[Replacement, ...]:
    """The `options` line with another name of a parameter; empty where it is not written plainly."""
    value, count = re.subn(
        rf"(?<![^\s\"]){re.escape(written)}(?=[=\s]|\Z)", lambda _: meant, rule.value.strip(), count=1
    )
    return (replacement(rule.file, f"options {rule.module} {value}"),) if count else ()


def with_name(rule: Rule, name: str) -> tuple[Replacement, ...]:
    """The rule about another name."""
    if rule.kind == "autoload":
        return (replacement(rule.file, name),)
    return (replacement(rule.file, f"{rule.kind} {name} {rule.value.strip()}".rstrip()),)


def is_slip(written: str, meant: str) -> bool:
    """Tell whether one slip of the finger lies between two names: names that differ in their end or a digit are two modules."""
    if not (written + meant).replace("_", "").isalpha() or abs(len(written) - len(meant)) > 1 or len(written) < 4:
        return False
    start = 0
    while start < min(len(written), len(meant)) and written[start] == meant[start]:
        start += 1
    left, other = written[start:], meant[start:]
    if start == 0 or not left or not other:
        return False
    swapped = left[:2] == other[1::-1] and left[2:] == other[2:]
    replaced = len(left) > 1 and left[1:] == other[1:]
    return swapped or replaced or left[1:] == other or left == other[1:]


def _meant(name: str, modules: Set[str]) -> str:
    plain = name.replace("-", "_")
    return plain if plain in modules else another_name(name, modules)


def _safe(text: str) -> str:
    """Show what can be seen as it is, and the rest as bytes."""
    return text if text.isprintable() else "".join(char if char.isprintable() else shown(char) for char in text)


def _quoted(text: str) -> str:
    safe = _safe(text)
    return safe if len(safe) <= SHOWN_MAX else f"{safe[:SHOWN_MAX]}…"
