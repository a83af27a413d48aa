# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writes kmodctl's completion for bash, zsh or fish from its argument parser.

    python3 -I docs/completion.py SHELL

Names of modules come from small files of the kernel and its module index, so that a key press starts neither Python nor the
daemon.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kmodd.cli.arguments import make_parser
from kmodd.errors import ERRORS
from kmodd.names import SCOPES
from kmodd.notifier.notice import KINDS

LOADED, AVAILABLE, STORED, PARAMETERS = "loaded", "available", "stored", "parameters"
KERNELS, FILES, USERS = "kernels", "files", "users"
# What a value is, by its metavar: a function of the shell, or words. A row with a command has precedence.
VALUES: dict[tuple[str, str] | str, str | Sequence[str]] = {
    "MODULE": AVAILABLE,
    **{(command, "MODULE"): LOADED for verb in ("unload", "reload") for command in (verb, f"plan {verb}")},
    ("set", "MODULE"): LOADED,
    ("log", "MODULE"): LOADED,
    ("reset-failed", "MODULE"): LOADED,
    **{(f"store {verb}", "MODULE"): STORED for verb in ("list", "activate", "deactivate", "remove")},
    "GLOB": LOADED,
    "PARAMETER": PARAMETERS,
    "FILE": FILES,
    "KEY": FILES,
    "CERT": FILES,
    "RELEASE": KERNELS,
    "USER": USERS,
    "TIME": ("1h", "1d", "1w", "today", "yesterday"),
    "SPAN": ("12h", "7d", "30d", "90d"),
    "EVENT": KINDS[:-1],
    "SCOPE": SCOPES,
    ("notify add", "--error"): sorted(error.name() for error in ERRORS.values()),
}


@dataclass(frozen=True)
class Option:
    """An option of one command."""

    names: Sequence[str]
    help: str
    values: Sequence[str | Sequence[str]]
    """What each of its values is: a function, words, or an empty text for what cannot be completed."""
    repeats: bool = False


@dataclass(frozen=True)
class Command:
    """A command by its path, such as `config blacklist`; the empty path is kmodctl itself."""

    path: str
    help: str
    options: Sequence[Option]
    arguments: Sequence[str | Sequence[str]]
    """What each of its arguments is, as for the values of an option."""
    commands: Sequence["Command"]

    def __iter__(self) -> Iterator["Command"]:
        yield self
        for command in self.commands:
            yield from command

    @property
    def name(self) -> str:
        """Its last word."""
        return self.path.rpartition(" ")[2]


def commands(parser: argparse.ArgumentParser, path: str = "", text: str = "") -> Command:
    """The parser's commands, options and arguments."""
    options, arguments, inner = [], [], []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            inner = [commands(each, f"{path} {name}".strip(), helps[name]) for name, each in action.choices.items()]
        elif action.option_strings:
            options.append(
                Option(
                    action.option_strings,
                    (action.help or "").replace("%%", "%"),
                    _values(path, action),
                    action.default == [],
                )
            )
        else:
            arguments += _values(path, action)
    return Command(path, text, options, arguments, inner)


def _values(path: str, action: argparse.Action) -> list[str | Sequence[str]]:
    if action.nargs == 0:
        return []
    if action.choices is not None:
        return [[str(choice) for choice in action.choices]]
    metavars = action.metavar if isinstance(action.metavar, tuple) else (action.metavar or "",)
    for key in (*((path, name) for name in action.option_strings), *((path, metavar) for metavar in metavars)):
        if key in VALUES:
            return [VALUES[key]]
    return [VALUES.get(metavar, "") for metavar in metavars]


def valued(root: Command) -> Iterator[tuple[str, str, Sequence[str | Sequence[str]]]]:
    """(path or `*`, name, values) of every option with values; `*` where it is the same in all commands that have it."""
    places: dict[str, dict[str, Sequence[str | Sequence[str]]]] = {}
    for command in root:
        for option in command.options:
            for name in option.names:
                places.setdefault(name, {})[command.path] = option.values
    for name, values in places.items():
        different = {repr(each) for each in values.values()}
        rows = {"*": next(iter(values.values()))} if len(different) == 1 else values
        yield from ((path, name, each) for path, each in rows.items() if each)


def quote(text: str) -> str:
    """As one word of bash, zsh or fish."""
    return "'" + text.replace("'", "'\\''") + "'"


FUNCTIONS = r"""
_kmodctl_loaded() {
    cut -d' ' -f1 /proc/modules 2>/dev/null
}

_kmodctl_available() {
    sed -n 's|^\([^:]*/\)\{0,1\}\([^/:.]*\)\.ko[^:]*:.*|\2|p' "/lib/modules/$(uname -r)/modules.dep" 2>/dev/null | tr - _
}

_kmodctl_kernels() {
    command ls /lib/modules 2>/dev/null
}

# Modules with an active version. Only root can read the store itself.
_kmodctl_stored() {
    local kernel
    for kernel in $(_kmodctl_kernels); do
        command ls "/lib/modules/$kernel/updates/kmodd" 2>/dev/null
    done | sed -n 's|\.ko$||p' | sort -u
}

_kmodctl_parameters() {
    command ls "/sys/module/$(printf %s "$1" | tr - _)/parameters" 2>/dev/null
}
"""
FISH_FUNCTIONS = r"""
function __kmodctl_loaded
    cut -d' ' -f1 /proc/modules 2>/dev/null
end

function __kmodctl_available
    sed -n 's|^\([^:]*/\)\{0,1\}\([^/:.]*\)\.ko[^:]*:.*|\2|p' /lib/modules/(uname -r)/modules.dep 2>/dev/null | tr - _
end

function __kmodctl_kernels
    command ls /lib/modules 2>/dev/null
end

# Modules with an active version. Only root can read the store itself.
function __kmodctl_stored
    for kernel in (__kmodctl_kernels)
        command ls /lib/modules/$kernel/updates/kmodd 2>/dev/null
    end | string replace -rf '\.ko$' '' | sort -u
end

function __kmodctl_parameters
    command ls /sys/module/(string replace -a - _ -- $argv[1])/parameters 2>/dev/null
end
"""
HEADER = """\
# SPDX-License-Identifier: LGPL-2.1-or-later
# Completion for kmodctl, written by docs/completion.py from the parser of its command line.
"""


def bash(root: Command) -> Iterator[str]:
    """The lines of the completion for bash."""

    def offer(value: str | Sequence[str]) -> str:
        if not isinstance(value, str):
            return f"_kmodctl_offer {quote(' '.join(value))}"
        if value in (FILES, USERS):
            return f'mapfile -t COMPREPLY < <(compgen -{value[0]} -- "$current")'
        return f'_kmodctl_offer "$(_kmodctl_{value} "$module")"' if value else ":"

    def case(path: str, *rest: str) -> str:
        return f"*:{':'.join(rest)})" if path == "*" else f"{quote(':'.join((path, *rest)))})"

    yield HEADER + FUNCTIONS
    yield r"""_kmodctl_offer() {
    mapfile -t COMPREPLY < <(compgen -W "$1" -- "$current")
}

_kmodctl() {
    local current=${COMP_WORDS[COMP_CWORD]} path='' module='' option='' arguments=0 values=0 value=0 index word
    COMPREPLY=()
    for ((index = 1; index < COMP_CWORD; index++)); do
        word=${COMP_WORDS[index]}
        if ((value < values)); then
            ((value++))
            continue
        fi
        case $path:$word in"""
    for path, name, values in valued(root):
        yield f"            {case(path, name)} option=$word value=0 values={len(values)} ;;"
    yield "            *:-*) ;;"
    for command in root:
        for each in command.commands:
            yield f"            {case(command.path, each.name)} path={quote(each.path)} ;;"
    yield r"""            *)
                ((arguments)) || module=$word
                ((arguments++)) ;;
        esac
    done
    if ((value < values)); then
        case $path:$option:$value in"""
    for path, name, values in valued(root):
        for index, value in enumerate(values):
            yield f"            {case(path, name, str(index))} {offer(value)} ;;"
    yield r"""        esac
        return
    fi
    if [[ $current == -* ]]; then
        case $path in"""
    for command in root:
        names = " ".join(name for option in command.options for name in option.names if name.startswith("--"))
        yield f"            {quote(command.path)}) _kmodctl_offer {quote(names)} ;;"
    yield r"""        esac
        return
    fi
    case $path:$arguments in"""
    for command in root:
        if command.commands:
            yield f"        {case(command.path, '0')} {offer([each.name for each in command.commands])} ;;"
        for index, value in enumerate(command.arguments):
            if value:
                yield f"        {case(command.path, str(index))} {offer(value)} ;;"
    yield "    esac\n}\n\ncomplete -F _kmodctl kmodctl"


def zsh(root: Command) -> Iterator[str]:
    """The lines of the completion for zsh."""

    def plain(text: str) -> str:
        return "".join(f"\\{char}" if char in "[]:\\" else char for char in text)

    def action(value: str | Sequence[str]) -> str:
        if not isinstance(value, str):
            return f"({' '.join(value)})"
        # Behind a space, a function is called with its own arguments alone.
        return {FILES: "_files", USERS: "_users", "": ""}.get(value, f" _kmodctl_names {value}")

    def spell(option: Option) -> str:
        rest = f"[{plain(option.help)}]" + "".join(f":value:{action(value)}" for value in option.values)
        if len(option.names) > 1:
            return f"{quote('(' + ' '.join(option.names) + ')')}{{{','.join(option.names)}}}{quote(rest)}"
        return quote(f"{'*' if option.repeats else ''}{option.names[0]}{rest}")

    def function(path: str) -> str:
        return f"_kmodctl_of_{path.replace('-', '_').replace(' ', '_')}" if path else "_kmodctl"

    yield "#compdef kmodctl\n" + HEADER + FUNCTIONS
    yield r"""_kmodctl_names() {
    local -a names
    names=(${(f)"$(_kmodctl_$1 ${(Q)line[1]})"})
    compadd -a names
}"""
    for command in root:
        options = " \\\n        ".join(map(spell, command.options))
        yield f"\n{function(command.path)}() {{\n    local -a line"
        if not command.commands:
            rows = "".join(
                f" \\\n        {quote(f'{index}:value:{action(value)}')}"
                for index, value in enumerate(command.arguments, 1)
            )
            yield f"    _arguments -S \\\n        {options}{rows}\n}}"
            continue
        rows = " \\\n        ".join(quote(f"{each.name}:{plain(each.help)}") for each in command.commands)
        yield f"""\
    local context state state_descr curcontext=$curcontext
    local -a commands
    typeset -A opt_args
    commands=(
        {rows.replace(" " + chr(92), "")}
    )
    _arguments -C -S \\
        {options} \\
        '1:command:->command' '*::argument:->argument' && return
    case $state in
        command) _describe command commands ;;
        argument) case $words[1] in"""
        yield from (f"            {each.name}) {function(each.path)} ;;" for each in command.commands)
        yield "        esac ;;\n    esac\n}"
    yield '\n_kmodctl "$@"'


def fish(root: Command) -> Iterator[str]:
    """The lines of the completion for fish."""

    def arguments(value: str | Sequence[str]) -> str:
        if not isinstance(value, str):
            return f"-a {quote(' '.join(value))}"
        if value == FILES:
            return "-F"
        called = {USERS: "__fish_complete_users", PARAMETERS: "__kmodctl_parameters (__kmodctl_at argument)"}
        return f"-a {quote('(' + called.get(value, f'__kmodctl_{value}') + ')')}" if value else ""

    def case(path: str, name: str) -> str:
        return f"        case {quote(f'{path}:{name}')}"

    yield HEADER + FISH_FUNCTIONS
    yield r"""
# Where the line stands: `__kmodctl_at "config show" 0` is the first argument of config show, `__kmodctl_at path` prints the path.
function __kmodctl_at
    set -l path ''
    set -l arguments 0
    set -l skip 0
    set -l first ''
    for word in (commandline -opc)[2..]
        if test $skip -gt 0
            set skip (math $skip - 1)
            continue
        end
        switch "$path:$word"
"""[:-1]
    for path, name, values in valued(root):
        yield f"            case {quote(f'{path}:{name}')}\n                set skip {len(values)}"
    yield "            case '*:-*'"
    for command in root:
        for each in command.commands:
            yield f"            case {quote(f'{command.path}:{each.name}')}\n                set path {quote(each.path)}"
    yield r"""            case '*'
                test $arguments -eq 0; and set first $word
                set arguments (math $arguments + 1)
        end
    end
    if test "$argv[1]" = argument
        echo $first
    else
        test "$argv[1]" = "$path"; and begin
            test (count $argv) -eq 1; or test "$argv[2]" = $arguments
        end
    end
end

complete -c kmodctl -f"""
    for command in root:
        here = f"__kmodctl_at {quote(command.path)}"
        for each in command.commands:
            yield f"complete -c kmodctl -n {quote(here + ' 0')} -a {each.name} -d {quote(each.help)}"
        for index, value in enumerate(command.arguments):
            if value:
                yield f"complete -c kmodctl -n {quote(f'{here} {index}')} {arguments(value)}"
        for option in command.options:
            names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names)
            needs = f" -r {arguments(option.values[0])}" if option.values else ""
            if needs and "-F" not in needs:
                needs += " -f"
            yield f"complete -c kmodctl -n {quote(here)} {names}{needs} -d {quote(option.help)}"


if __name__ == "__main__":
    shells = {"bash": bash, "zsh": zsh, "fish": fish}
    for line in shells[sys.argv[1]](commands(make_parser())):
        sys.stdout.write(line + "\n")
