# SPDX-License-Identifier: LGPL-2.1-or-later
"""The manual pages and the shells' completion say what kmodctl and the API have, all of it."""

import argparse
import importlib.util
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType

import pytest

from kmodd.cli import arguments
from kmodd.cli.arguments import ExitCode
from kmodd.dbus.interface_xml import installed
from kmodd.errors import ERRORS
from kmodd.names import SCOPES

ROOT = Path(__file__).parents[2]
XML = ROOT / "dbus" / "org.kmodd1.xml"
SHELLS = ("bash", "zsh", "fish")


def grammar() -> dict[str, argparse.ArgumentParser]:
    """Every command's parser."""
    return {path: parser for path, parser in all_parsers().items() if path and " " not in path}


def long_options() -> set[str]:
    """Every long option of every command."""
    return {
        option
        for parser in all_parsers().values()
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--")
    }


def all_parsers() -> dict[str, argparse.ArgumentParser]:
    """Every parser by the words that lead to it; kmodctl itself by the empty text."""
    found: dict[str, argparse.ArgumentParser] = {"": arguments.make_parser()}
    rest = [""]
    while rest:
        path = rest.pop()
        for action in found[path]._actions:
            if isinstance(action, argparse._SubParsersAction):
                inner = {f"{path} {name}".strip(): parser for name, parser in action.choices.items()}
                found |= inner
                rest += inner
    return found


def script(name: str) -> ModuleType:
    """A script of docs, which is in no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """docs/org_kmodd1.py."""
    return script("org_kmodd1")


def test_the_api_page_has_every_member(generator: ModuleType) -> None:
    text = "\n".join(generator.page(XML.read_text(encoding="utf-8")))
    node = ET.parse(XML).getroot()  # noqa: S314 - our own file
    members = [found.attrib["name"] for kind in ("method", "signal", "property") for found in node.iter(kind)]
    assert len(members) > 40
    for name in members:
        assert re.search(rf"^\.SS {name}[( ]", text, re.MULTILINE), name
    assert "Authorization: \\fBorg.kmodd1.load\\fR and \\fBorg.kmodd1.unload\\fR." in text


def test_the_api_page_is_a_script_that_needs_only_the_standard_library() -> None:
    result = subprocess.run(
        [sys.executable, "-I", "-S", ROOT / "docs" / "org_kmodd1.py", XML], capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith("'\\\" t\n")
    assert all(len(line) < 120 for line in result.stdout.splitlines())
    assert not re.search(r"^\.PP\n\.PP|^\.S[HS].*\n\.PP", result.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ('<interface name="a.B"/>', "interface a.B has no comment"),
        ('<!-- a.B: --><interface name="a.B"/>', "a.B is not described"),
        ('<!-- a.B:\n\nx--><interface name="a.B"><method name="M"/></interface>', "method M has no comment"),
        (
            '<!-- a.B:\n\nx--><interface name="a.B"><!-- M:\n@y: z\n\nx--><method name="M"/></interface>',
            "described .'y'., has ..",
        ),
        ('<!-- a.B:\n\nx--><interface name="a.B"><!-- M:\n\nx--><method name="M"/></interface>', "names no action"),
        (
            '<!-- a.B:\n\nx--><interface name="a.B"><!-- M:\n\nx\n\nOptions: `x b`--><method name="M"/></interface>',
            r"M: describes the options \['x'\], takes \[\]",
        ),
        (
            (
                '<!-- a.B:\n\nx--><interface name="a.B"><!-- M:\n\nx\n\nOptions: `x b`--><method name="M">'
                '<annotation name="org.kmodd1.Options" value="x s"/></method></interface>'
            ),
            r"M: describes the options \['x'\], takes \['x'\]",
        ),
    ],
)
def test_what_is_not_documented_stops_the_build(broken: str, said: str, generator: ModuleType) -> None:
    with pytest.raises(generator.DocumentationError, match=said):
        list(generator.page(f"<node>{broken}</node>"))


def test_options_and_errors_are_described_as_the_programs_have_them(generator: ModuleType) -> None:
    """What the annotations list, which the daemon and the clients read, and what the comments say."""
    names, everywhere = {error.name() for error in ERRORS.values()}, {"InvalidArgs", "AccessDenied", "LimitsExceeded"}
    for name in ("org.kmodd1", "org.kmodd1.Notifier"):
        text = (ROOT / "dbus" / f"{name}.xml").read_text(encoding="utf-8")
        list(generator.page(text))  # compares the options
        node = ET.fromstring(text, ET.XMLParser(target=ET.TreeBuilder(insert_comments=True)))  # noqa: S314 - our own file
        for interface, _ in generator.documented(node, "interface"):
            for method, comment in generator.documented(interface, "method"):
                row = installed(name).method(interface.attrib["name"], method.attrib["name"])
                said = set(re.findall(r"`([A-Z][A-Za-z]+)`", " ".join(comment.sections.get("Errors", []))))
                assert said & names <= {*row.errors, *everywhere}, f"{row.interface}.{row.name}"
                assert set(row.errors) <= names, f"{row.interface}.{row.name}"


def test_the_page_of_the_daemon_has_every_action_and_detail() -> None:
    page = (ROOT / "docs" / "man" / "kmodd.8.scd").read_text(encoding="utf-8")
    policy = ET.parse(ROOT / "polkit" / "org.kmodd1.policy")  # noqa: S314 - our own file
    actions = {action.attrib["id"] for action in policy.iter("action")}
    assert set(re.findall(r"^\|[\[ ] \*(org\.kmodd1\.[a-z-]+)\*$", page, re.MULTILINE)) == actions
    for detail in ("module", "modules", "parameters", "action", "sha256", "on-behalf-of"):
        assert f"*{detail}*" in page, detail


def test_the_page_of_kmodctl_has_every_command_option_and_status() -> None:
    page = (ROOT / "docs" / "man" / "kmodctl.1.scd").read_text(encoding="utf-8")
    for command in grammar():
        assert re.search(rf"^\*{command}\b", page, re.MULTILINE), command
    for option in long_options():
        assert option in page or option in {"--follow", "--lines"}, option
    listed = {int(number) for number in re.findall(r"^\|[\[ ] (\d+)$", page, re.MULTILINE)}
    assert listed == {code.value for code in ExitCode}


@pytest.fixture(scope="module")
def completion(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The generated completion of each shell."""
    folder = tmp_path_factory.mktemp("completion")
    for shell in SHELLS:
        # Without site-packages: a package is built where no library of kmodd need be installed.
        command = [sys.executable, "-IBS", str(ROOT / "docs" / "completion.py"), shell]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        (folder / shell).write_text(text)
    return {shell: folder / shell for shell in SHELLS}


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_has_every_command_and_option(shell: str, completion: dict[str, Path]) -> None:
    text = completion[shell].read_text(encoding="utf-8")
    for command in grammar():
        assert re.search(rf"(?<![\w-]){command}(?![\w-])", text), command
    for option in long_options():
        assert option in text or f"-l {option.removeprefix('--')}" in text, option
    assert " ".join(SCOPES) in text
    done = subprocess.run([shell, "-n", completion[shell]], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_value_that_completion_knows_is_of_the_command_line() -> None:
    """A row for a metavar, a command or an option that is gone would be dead."""
    found = set()
    for path, parser in all_parsers().items():
        for action in parser._actions:
            metavars = action.metavar if isinstance(action.metavar, tuple) else (action.metavar,)
            for name in (*metavars, *action.option_strings):
                found |= {name, (path, name)}
    assert set(script("completion").VALUES) <= found


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("kmodctl lo", "load log"),
        ("kmodctl --json re", "reload reset-failed respond"),
        ("kmodctl load v", "vfat virtio"),
        ("kmodctl unload v", "vfat"),
        ("kmodctl --bus x unload v", "vfat"),
        ("kmodctl plan lo", "load"),
        ("kmodctl plan load v", "vfat virtio"),
        ("kmodctl plan unload --d", "--dependents --disconnect"),
        ("kmodctl unload --d", "--dry-run --dependents --disconnect"),
        ("kmodctl list --state b", "builtin"),
        ("kmodctl set vfat d", "debug"),
        ("kmodctl load vfat x", ""),
        ("kmodctl con", "config"),
        ("kmodctl config au", "autoload"),
        ("kmodctl config blacklist v", "vfat virtio"),
        ("kmodctl config blacklist vfat --h", "--hard --help"),
        ("kmodctl config show --f", "--findings"),
        ("kmodctl store import --version lo", ""),
        ("kmodctl store import --sign key /etc/hostn", "/etc/hostname"),
        ("kmodctl store import --sign key cert /etc/hostn", "/etc/hostname"),
        ("kmodctl notify add ops x --error InitF", "InitFailed"),
        ("kmodctl token create --scope ac", "activate"),
    ],
)
def test_bash_completion(line: str, offered: str, completion: dict[str, Path]) -> None:
    script = f"""
        source {completion["bash"]}
        _kmodctl_loaded() {{ printf '%s\\n' vfat fat; }}
        _kmodctl_available() {{ printf '%s\\n' vfat virtio fat; }}
        _kmodctl_parameters() {{ [[ $1 == vfat ]] && echo debug; }}
        COMP_WORDS=({line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        _kmodctl
        echo "${{COMPREPLY[*]}}"
    """
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert result.stderr == ""
    assert sorted(result.stdout.split()) == sorted(offered.split())


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("kmodctl lo", "load log"),
        ("kmodctl load v", "vfat virtio"),
        ("kmodctl --bus x unload v", "vfat"),
        ("kmodctl plan unload --d", "--dependents --disconnect"),
        ("kmodctl list --state b", "builtin"),
        ("kmodctl set vfat d", "debug"),
        ("kmodctl load vfat x", ""),
        ("kmodctl config au", "autoload"),
        ("kmodctl config blacklist vfat --h", "--hard --help"),
        ("kmodctl store import --version lo", ""),
        ("kmodctl store import --sign key cert /etc/hostn", "/etc/hostname"),
    ],
)
def test_fish_completion(line: str, offered: str, completion: dict[str, Path]) -> None:
    script = f"""
        source {completion["fish"]}
        function __kmodctl_loaded; printf '%s\\n' vfat fat; end
        function __kmodctl_available; printf '%s\\n' vfat virtio fat; end
        function __kmodctl_parameters; test $argv[1] = vfat; and echo debug; end
        complete -C '{line}'
    """
    result = subprocess.run(["fish", "--no-config", "-c", script], capture_output=True, text=True, check=True)
    assert result.stderr == ""
    words = [row.partition("\t")[0] for row in result.stdout.splitlines()]
    # fish 4 goes on with words that only have the letters somewhere.
    assert sorted(word for word in words if word.startswith(line.rsplit(maxsplit=1)[-1])) == sorted(offered.split())


def test_zsh_completion(completion: dict[str, Path], tmp_path: Path) -> None:
    """Each line is completed where one word is meant, and then run."""
    lines = {
        "config au": "config autoload",
        "plan lo": "plan load",
        "load vir": "load virtio",
        "unload vi": "unload vi",
        "--bus x unload vf": "--bus x unload vfat",
        "plan unload --depe": "plan unload --dependents",
        "list --state bu": "list --state builtin",
        "set vfat d": "set vfat debug",
        "config blacklist vfat --ha": "config blacklist vfat --hard",
        "store import --sign key cert /etc/hostn": "store import --sign key cert /etc/hostname",
        "token create --scope ac": "token create --scope activate",
    }
    (tmp_path / "inside").write_text(f"""
        autoload -Uz compinit; compinit -u -D
        source {completion["zsh"]} 2>/dev/null; compdef _kmodctl kmodctl
        _kmodctl_loaded() {{ printf '%s\\n' vfat fat }}
        _kmodctl_available() {{ printf '%s\\n' vfat virtio fat }}
        _kmodctl_parameters() {{ [[ $1 == vfat ]] && echo debug }}
        kmodctl() {{ print -r -- "$*" >> {tmp_path}/ran }}
    """)
    typed = "\n".join(f"zpty -n -w z $'kmodctl {line}\\t\\n'" for line in lines)
    (tmp_path / "outside").write_text(f"""
        zmodload zsh/zpty
        zpty z env -i PATH=$PATH TERM=dumb zsh -f -i
        zpty -n -w z $'source {tmp_path}/inside\\n'
        {typed}
        zpty -n -w z $'exit\\n'
        while zpty -r z line; do :; done
    """)
    subprocess.run(["zsh", "-f", tmp_path / "outside"], capture_output=True, timeout=60, check=False)
    assert (tmp_path / "ran").read_text().splitlines() == list(lines.values())


def test_bash_completion_reads_the_index_of_modules(tmp_path: Path, completion: dict[str, Path]) -> None:
    index = tmp_path / "modules.dep"
    index.write_text(
        "kernel/fs/fat/vfat.ko: kernel/fs/fat/fat.ko\nkernel/drivers/net/virtio-net.ko.xz:\nextra.ko.zst: x.ko\n"
    )
    text = completion["bash"].read_text(encoding="utf-8").replace("/lib/modules/$(uname -r)/modules.dep", str(index))
    script = f"{text}\n_kmodctl_available"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["vfat", "virtio_net", "extra"]
