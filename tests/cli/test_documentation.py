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
from kmodd.cli.exit_codes import ExitCode
from kmodd.cli.parser import Parser

ROOT = Path(__file__).parents[2]
XML = ROOT / "dbus" / "org.kmodd1.xml"
COMPLETION = ROOT / "docs" / "completion"


def grammar() -> dict[str, argparse.ArgumentParser]:
    """Every command's parser."""
    found: dict[str, argparse.ArgumentParser] = {}
    commands = Parser().add_subparsers()
    arguments._Grammar(commands, arguments._common()).define()
    found.update(commands.choices)
    return found


def long_options() -> set[str]:
    """Every long option of every command."""
    return {
        option
        for parser in grammar().values()
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--")
    }


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """docs/org_kmodd1.py, which is a script outside any package."""
    spec = importlib.util.spec_from_file_location("org_kmodd1", ROOT / "docs" / "org_kmodd1.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["org_kmodd1"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_api_page_has_every_member(generator: ModuleType) -> None:
    text = "\n".join(generator.page(XML.read_text(encoding="utf-8")))
    node = ET.parse(XML).getroot()  # noqa: S314 - our own file
    members = [found.attrib["name"] for kind in ("method", "signal", "property") for found in node.iter(kind)]
    assert len(members) > 40
    for name in members:
        assert re.search(rf"^\.SS {name}[( ]", text, re.MULTILINE), name
    assert "Authorisation: \\fBorg.kmodd1.load\\fR and \\fBorg.kmodd1.unload\\fR." in text


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
    ],
)
def test_what_is_not_documented_stops_the_build(broken: str, said: str, generator: ModuleType) -> None:
    with pytest.raises(generator.DocumentationError, match=said):
        list(generator.page(f"<node>{broken}</node>"))


def test_the_page_of_the_daemon_has_every_action_and_detail() -> None:
    page = (ROOT / "docs" / "kmodd.8").read_text(encoding="utf-8").replace("\\-", "-")
    policy = ET.parse(ROOT / "polkit" / "org.kmodd1.policy")  # noqa: S314 - our own file
    actions = {action.attrib["id"] for action in policy.iter("action")}
    assert set(re.findall(r"^\\fB(org\.kmodd1\.[a-z-]+)\\fR\t", page, re.MULTILINE)) == actions
    for detail in ("module", "modules", "parameters", "action", "sha256", "on-behalf-of"):
        assert re.search(rf"^\.(B|BR) {detail}\b", page, re.MULTILINE), detail


def test_the_page_of_kmodctl_has_every_command_option_and_status() -> None:
    page = (ROOT / "docs" / "kmodctl.1").read_text(encoding="utf-8").replace("\\-", "-")
    for command in grammar():
        assert re.search(rf"^\.(B|BI|BR) {command}\b", page, re.MULTILINE), command
    for option in long_options():
        assert option in page or option in {"--follow", "--lines"}, option
    listed = {int(number) for number in re.findall(r"^(\d+)\t", page, re.MULTILINE)}
    assert listed == {code.value for code in ExitCode}


@pytest.mark.parametrize("file", ["kmodctl.bash", "_kmodctl", "kmodctl.fish"])
def test_completion_has_every_command_and_option(file: str) -> None:
    text = (COMPLETION / file).read_text(encoding="utf-8")
    for command in grammar():
        assert re.search(rf"(?<![\w-]){command}(?![\w-])", text), command
    for option in long_options():
        assert option in text or f"-l {option.removeprefix('--')}" in text, option


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("kmodctl lo", "load log"),
        ("kmodctl --json re", "reload reset-failed"),
        ("kmodctl load v", "vfat virtio"),
        ("kmodctl unload v", "vfat"),
        ("kmodctl --bus x unload v", "vfat"),
        ("kmodctl plan lo", "load"),
        ("kmodctl plan load v", "vfat virtio"),
        ("kmodctl plan unload --d", "--dependents"),
        ("kmodctl unload --d", "--dry-run --dependents"),
        ("kmodctl list --state b", "builtin"),
        ("kmodctl set vfat d", "debug"),
        ("kmodctl load vfat x", ""),
        ("kmodctl con", "config"),
        ("kmodctl config au", "autoload"),
        ("kmodctl config blacklist v", "vfat virtio"),
        ("kmodctl config blacklist vfat --h", "--hard --help"),
        ("kmodctl config show --f", "--findings"),
    ],
)
def test_bash_completion(line: str, offered: str) -> None:
    script = f"""
        source {COMPLETION}/kmodctl.bash
        _kmodctl_loaded() {{ printf '%s\\n' vfat fat; }}
        _kmodctl_available() {{ printf '%s\\n' vfat virtio fat; }}
        _kmodctl_parameters() {{ [[ $1 == vfat ]] && echo debug; }}
        COMP_WORDS=({line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        _kmodctl
        echo "${{COMPREPLY[*]}}"
    """
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert result.stderr == ""
    assert result.stdout.strip() == offered


def test_bash_completion_reads_the_index_of_modules(tmp_path: Path) -> None:
    index = tmp_path / "modules.dep"
    index.write_text(
        "kernel/fs/fat/vfat.ko: kernel/fs/fat/fat.ko\nkernel/drivers/net/virtio-net.ko.xz:\nextra.ko.zst: x.ko\n"
    )
    text = (
        (COMPLETION / "kmodctl.bash")
        .read_text(encoding="utf-8")
        .replace("/lib/modules/$(uname -r)/modules.dep", str(index))
    )
    script = f"{text}\n_kmodctl_available"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["vfat", "virtio_net", "extra"]
