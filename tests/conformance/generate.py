# SPDX-License-Identifier: LGPL-2.1-or-later
"""Random trees of modules, random configuration and questions about them."""

from collections.abc import Callable
from dataclasses import replace
from random import Random

from kmodd.model import Verb
from tests.conformance.scenario import Configuration, Question, Tree, canonical
from tests.kernel.fakeroot import FakeModule

PARAMETERS = (("count", "int", ""), ("flag", "bool", ""), ("mode", "charp", ""))
NAMES = ("a", "b", "c", "d", "e-f", "g_h", "snd-x", "k1")
BUILTINS = ("core", "base-x")
UNKNOWN = ("nosuch", "off", "combo")
FILES = (
    "etc/modprobe.d/10-x.conf",
    "etc/modprobe.d/test.conf",
    "run/modprobe.d/test.conf",
    "usr/local/lib/modprobe.d/m.conf",
    "usr/lib/modprobe.d/10-x.conf",
    "lib/modprobe.d/zz.conf",
    "etc/modprobe.d/ignored.txt",
)
_DEVICES = (
    "pci:v1d2sv*",
    "crypto-gcm(aes)",
    "devname:net/tun",
    "fs-{}",
    "char-major-9-*",
    "of:NcpusT<NULL>Carm",
    "it's",
    "nfct-helper-Q.{}",
    "acpi*:X {}:*",
)


def tree(random: Random) -> Tree:
    """Modules that need earlier ones, with aliases and soft dependencies."""
    names = random.sample(NAMES, random.randint(3, len(NAMES)))
    modules: list[FakeModule] = []
    for position, name in enumerate(names):
        depends = tuple(need for need in names[:position] if random.random() < 0.3)
        modules.append(
            FakeModule(
                name,
                depends=depends,
                aliases=tuple(_alias(random, name) for _ in range(random.choice((0, 0, 1, 2)))),
                parameters=PARAMETERS,
                softdep=_softdep(random, names, position) if random.random() < 0.2 else "",
                suffix=random.choice((".ko",) * 9 + (".ko.xz",)),
                folder=random.choice(("kernel/drivers", "kernel/fs", "updates", ".")),
            )
        )
    builtins = [FakeModule(name, builtin=True, folder="kernel/lib") for name in BUILTINS if random.random() < 0.8]
    if random.random() < 0.1:
        # A file and a built-in of one name. modprobe inserts it where another module's file needs it, but no kernel takes the
        # same symbols twice.
        used = {need for module in modules for need in module.depends}
        name = random.choice([name for name in names if name not in used])
        builtins.append(FakeModule(name, builtin=True, folder="kernel/lib"))
    return Tree((*modules, *builtins))


def _alias(random: Random, name: str) -> str:
    kind = random.random()
    if kind < 0.1:
        return random.choice((*BUILTINS, *NAMES))
    return random.choice(_DEVICES).format(name)


def _softdep(random: Random, names: list[str], position: int) -> str:
    # Mostly away from the module: with circles everywhere, circles are all one sees.
    others = names if random.random() < 0.1 else names[:position]
    words = random.sample(others, min(len(others), random.randint(1, 2)))
    if random.random() < 0.2:
        words.append(random.choice(("nosuch", "core", "fs-a")))
    return f"{random.choice(('pre', 'post'))}: {' '.join(words)}" if words else ""


Profile = Callable[[Random, Tree], list[str]]


def _names(random: Random, tree: Tree) -> str:
    every = [module.name for module in tree.modules]
    kind = random.random()
    if kind < 0.75:
        return random.choice(every)
    if kind < 0.85:
        return random.choice(every).replace("_", "-")
    if kind < 0.93:
        return random.choice([alias for module in tree.modules for alias in module.aliases] or every).replace("*", "3")
    return random.choice(UNKNOWN)


def _blacklist(random: Random, tree: Tree) -> list[str]:
    return [f"blacklist {_names(random, tree)}"]


def _softdeps(random: Random, tree: Tree) -> list[str]:
    names = [module.name for module in tree.modules]
    position = random.randrange(len(names))
    text = _softdep(random, names, position) or "pre:"
    return [f"softdep {names[position]} {text}"]


def _install(random: Random, tree: Tree) -> list[str]:
    name = _names(random, tree)
    command = random.choice(
        (
            "/bin/false",
            "/bin/false",
            "/usr/bin/false # not here",
            "exit 1",
            "/bin/true",
            ":",
            "logger x",
            "/sbin/modprobe --ignore-install a; true false",
        )
    )
    return [f"install {name} {command}"]


def _aliases(random: Random, tree: Tree) -> list[str]:
    left = random.choice(("x", "y-z", "bond0", "net-pf-*", "*q", _names(random, tree)))
    return [f"alias {left} {_names(random, tree)}"]


def _several(random: Random, tree: Tree) -> list[str]:
    # Few targets, so that one stands there twice: how modprobe ends is up to the last line.
    targets = [_names(random, tree), _names(random, tree), random.choice((*UNKNOWN, "core", "off"))]
    return [f"alias bond0 {random.choice(targets)}" for _ in range(random.randint(2, 4))]


def _options(random: Random, tree: Tree) -> list[str]:
    name = random.choice((_names(random, tree), "x", "bond0"))
    return [f"options {name} {random.choice(('count=1', 'count=2 flag=1', 'mode=x count=3', 'mode=-y'))}"]


def _remove(random: Random, tree: Tree) -> list[str]:
    return [f"remove {_names(random, tree)} {random.choice(('/bin/false', 'logger x', '/bin/true'))}"]


def _patterns(random: Random, tree: Tree) -> list[str]:
    pattern = random.choice(("[^a]*", "[!ab]", "?", "*_*", "s*", "[a-c]", "\\\\a", "[[:alpha:]]", "e?f", "*"))
    kind = random.choice(("install", "softdep", "alias"))
    if kind == "install":
        return [f"install {pattern} /bin/false"]
    target = _names(random, tree)
    return [f"softdep {pattern} pre: {target}" if kind == "softdep" else f"alias {pattern} {target}"]


def _spelling(random: Random, tree: Tree) -> list[str]:
    directive = random.choice((_blacklist, _softdeps, _install, _aliases, _options))
    lines = []
    for line in directive(random, tree):
        words = line.split(" ")
        blank = random.choice((" ", "\t", "  ", " \t ", " \\\n "))
        text = random.choice(("", " ", "\t")) + blank.join(words)
        forms = [text, text + " ", "# " + line, "#" + line + " \\"]
        # The next line would become words without `=`, which only flags take.
        forms += [] if directive is _options else [text + "\\"]
        lines.append(random.choice(forms))
    return lines


def _weakdeps(random: Random, tree: Tree) -> list[str]:
    # Information alone since kmod 33, and no word of it before.
    return [f"weakdep {_names(random, tree)} {_names(random, tree)}"]


PROFILES: tuple[tuple[Profile, ...], ...] = (
    (_blacklist,),
    (_softdeps,),
    (_install,),
    (_aliases,),
    (_options,),
    (_remove,),
    (_patterns,),
    (_spelling,),
    (_softdeps, _install),
    (_softdeps, _blacklist),
    (_several,),
    (_several, _blacklist, _install),
    (_aliases, _blacklist),
    (_aliases, _options),
    (_aliases, _softdeps),
    (_blacklist, _softdeps, _install, _aliases, _options, _spelling, _weakdeps),
)


def configuration(random: Random, tree: Tree, *, unloading: bool = False) -> Configuration:
    """Lines of one profile, spread over the folders. Something is loaded where it is about `unloading`, and sometimes elsewhere."""
    profile = random.choice(PROFILES)
    files: dict[str, tuple[str, ...]] = {}
    for _ in range(random.choice((1, 1, 2, 3, 5))):
        path = random.choice(FILES) if random.random() < 0.5 else FILES[1]
        for line in random.choice(profile)(random, tree):
            files[path] = (*files.get(path, ()), line)
    command_line = "quiet ro"
    if random.random() < 0.1:
        command_line += random.choice(
            (
                " a.count=7",
                " modprobe.blacklist=a,b",
                " modprobe.blacklist=snd-x,b",
                " modprobe.blacklist=snd_x",
                " module_blacklist=a",
                " module_blacklist=snd-x",
            )
        )
    loaded: tuple[str, ...] = ()
    if random.random() < 0.3 or unloading:
        builtins = {canonical(module.name) for module in tree.modules if module.builtin}
        files_ = [name for name in tree.needs() if name not in builtins]
        loaded = tuple(
            name
            for name in tree.whole(tuple(random.sample(files_, random.randint(1, len(files_)))))
            if name not in builtins
        )
    return Configuration(files, command_line, loaded)


def question(random: Random, tree: Tree, configuration: Configuration, *, unloading: bool = False) -> Question:
    """Ask by a name, another spelling, an alias, or for what does not exist; to unload it where it is about `unloading`."""
    unload = bool(configuration.loaded) and (random.random() < 0.5 or unloading)
    known = [word for lines in configuration.files.values() for line in lines for word in line.split()[1:2]]
    kind = random.random()
    if kind < 0.6:
        name = _names(random, tree)
    elif kind < 0.9 and known:
        name = random.choice(known).replace("*", "7")
    else:
        name = random.choice(("x", "y_z", "bond0", "nosuch", "A", "a.ko", "symbol:symbol_of_a", "core", "x.1"))
    # The door takes names that begin with a letter or a digit.
    parameters = (("count", "5"), ("mode", "a b"))[: random.choice((0, 0, 0, 0, 1, 2))]
    verb = Verb.UNLOAD if unload else Verb.LOAD
    return Question(verb, name.lstrip("\\*?[!^]") or "a", () if unload else parameters)


def without_file(configuration: Configuration, path: str) -> Configuration:
    """The same without one file."""
    return replace(configuration, files={name: lines for name, lines in configuration.files.items() if name != path})
