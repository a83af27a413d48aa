# SPDX-License-Identifier: LGPL-2.1-or-later
"""Ansible's own modprobe and kernel_blacklist beside kmodd on the same /etc: neither undoes the other. And kmodd's collection."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from tests.architecture.installation import ROOT
from tests.vm.channel import Result
from tests.vm.machine import Machine

AUTOLOAD = "/etc/modules-load.d/kmodd.conf"
OPTIONS = "/etc/modprobe.d/kmodd-options.conf"
BLACKLIST = "/etc/modprobe.d/kmodd-blacklist.conf"
OURS = f"{AUTOLOAD} {OPTIONS} {BLACKLIST}"
PARAMS, GOOD, INFO, SLOW = "kmodd_test_params", "kmodd_test_good", "kmodd_test_info", "kmodd_test_slow"
WISHES = "/etc/kmodd/modules.d/test.toml"
COLLECTIONS = "/srv/collections"
ENVIRONMENT = {
    "ANSIBLE_COLLECTIONS_PATH": COLLECTIONS,
    "ANSIBLE_LOCALHOST_WARNING": "0",
    "ANSIBLE_PIPELINING": "1",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}


@pytest.fixture(autouse=True)
def _nothing_left(vm: Machine) -> Iterator[None]:
    yield
    vm.check(
        f"rm -f {OURS} {WISHES} /etc/modprobe.d/blacklist-ansible.conf /etc/mod*.d/{PARAMS}.conf /etc/mod*.d/{GOOD}.conf;"
        f" for m in {PARAMS} {GOOD} {INFO}; do rmmod $m 2>/dev/null; done; true"
    )
    assert "Traceback" not in vm.journal("-u", "kmodd*")


def playbook(vm: Machine, tasks: Sequence[Mapping[str, Any]]) -> Result:
    """Run tasks in one playbook on the machine itself, to the end."""
    book = [{"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": list(tasks)}]
    vm.write_file("/root/book.json", json.dumps(book))
    command = ["ansible-playbook", "-i", "localhost,", "/root/book.json"]
    done = vm.run(command, env=ENVIRONMENT, timeout=540)
    assert done.code == 0, done.stdout + done.stderr
    return done


def play(vm: Machine, *tasks: Mapping[str, Any]) -> list[bool]:
    """Run tasks of community.general in one playbook on the machine itself; whether each changed something."""
    done = playbook(vm, tasks)
    states = [line.partition(":")[0] for line in done.stdout.splitlines() if ": [localhost]" in line]
    assert set(states) <= {"ok", "changed"}
    assert len(states) == len(tasks)
    return [state == "changed" for state in states]


def modprobe(name: str, **arguments: str) -> dict[str, Any]:
    return {"community.general.modprobe": {"name": name, **arguments}}


def blacklist(name: str, state: str = "present") -> dict[str, Any]:
    return {"community.general.kernel_blacklist": {"name": name, "state": state}}


def config(vm: Machine, *words: str) -> str:
    return vm.check(["kmodctl", "config", *words])


def rules(vm: Machine, module: str) -> set[tuple[str, str, str]]:
    """(kind, value, file) of every rule in force."""
    rows: Sequence[Mapping[str, Any]] = json.loads(vm.check(["kmodctl", "--json", "config", "show", module]))
    return {(row["kind"], row["value"], row["file"]) for row in rows if not row["shadowed-by"]}


def findings(vm: Machine, module: str) -> set[str]:
    rows: Sequence[Mapping[str, Any]] = json.loads(vm.check(["kmodctl", "--json", "config", "show", module]))
    return {finding["kind"] for row in rows for finding in row["findings"]}


def drift(vm: Machine) -> set[tuple[str, str]]:
    return {(row["module"], row["kind"]) for row in json.loads(vm.check(["kmodctl", "--json", "config", "drift"]))}


def text(vm: Machine, files: str) -> str:
    return vm.check(f"cat {files}")


def test_kmodd_first_then_ansible(vm: Machine) -> None:
    """Ansible wants the same modules as kmodd, then wants to forget them in every file there is."""
    config(vm, "autoload", PARAMS, "level=4")
    config(vm, "autoload", GOOD)
    config(vm, "blacklist", INFO, "--hard", "--reason", f"{PARAMS}")
    ours = text(vm, OURS)
    changed = play(
        vm,
        modprobe(PARAMS, state="present", persistent="present", params="level=4"),
        modprobe(PARAMS, state="present", persistent="present", params="level=4"),
        blacklist(INFO),
        blacklist(SLOW),
    )
    assert changed == [True, False, True, True]
    assert text(vm, OURS) == ours
    assert vm.check(f"cat /sys/module/{PARAMS}/parameters/level").strip() == "4"
    # Both are told, each with its file.
    theirs = f"/etc/modprobe.d/{PARAMS}.conf"
    assert rules(vm, PARAMS) >= {
        ("autoload", "", AUTOLOAD),
        ("autoload", "", f"/etc/modules-load.d/{PARAMS}.conf"),
        ("options", "level=4", OPTIONS),
        ("options", "level=4", theirs),
    }
    assert rules(vm, INFO) == {
        ("blacklist", "", BLACKLIST),
        ("install", "/bin/false", BLACKLIST),
        ("softdep", "pre:", BLACKLIST),  # without it, one of modules.softdep would switch the install line off
        ("blacklist", "", "/etc/modprobe.d/blacklist-ansible.conf"),
    }
    assert "loadable-by-name" in findings(vm, SLOW)
    changed = play(
        vm,
        modprobe(PARAMS, state="absent", persistent="absent"),
        modprobe(GOOD, state="absent", persistent="absent"),
        blacklist(INFO, "absent"),
        blacklist(SLOW, "absent"),
    )
    assert changed == [True, False, True, True]
    assert text(vm, OURS) == ours, "kmodd's rules hold when Ansible forgets its own"
    assert rules(vm, PARAMS) == {("autoload", "", AUTOLOAD), ("options", "level=4", OPTIONS)}
    assert rules(vm, INFO) == {
        ("blacklist", "", BLACKLIST),
        ("install", "/bin/false", BLACKLIST),
        ("softdep", "pre:", BLACKLIST),
    }
    # What stands there is what modprobe and systemd obey.
    assert vm.run(["modprobe", INFO]).code != 0
    vm.check("systemctl restart systemd-modules-load.service")
    assert vm.check(f"cat /sys/module/{PARAMS}/parameters/level").strip() == "4"
    assert vm.run(["test", "-d", f"/sys/module/{GOOD}"]).code == 0
    # kmodd still knows its files as its own: nothing of it counts as an edit.
    assert "edited" not in findings(vm, PARAMS)
    config(vm, "autoload", PARAMS, "--off")
    config(vm, "options", PARAMS, "--off")
    assert rules(vm, PARAMS) == set()


def test_ansible_first_then_kmodd(vm: Machine) -> None:
    """kmodd adds to what Ansible wrote, tells it in drift, and takes only its own away."""
    assert play(
        vm,
        modprobe(PARAMS, state="present", persistent="present", params="level=4"),
        modprobe(GOOD, state="present", persistent="present"),
        blacklist(INFO),
    ) == [True, True, True]
    files = f"/etc/modules-load.d/{PARAMS}.conf /etc/modprobe.d/{PARAMS}.conf /etc/modprobe.d/blacklist-ansible.conf"
    theirs = text(vm, files)
    # What is wanted is there already, by Ansible's doing: no drift, and nothing for kmodd to write.
    vm.write_file(
        WISHES,
        f'[module.{PARAMS}]\nstate = "loaded"\nautoload = true\noptions = {{ level = 4 }}\n[module.{INFO}]\nblacklist = "soft"\n',
    )
    vm.check("systemctl reload kmodd")
    assert drift(vm) == set()
    vm.write_file(WISHES, f'[module.{INFO}]\nblacklist = "hard"\n[module.{SLOW}]\nblacklist = "soft"\n')
    vm.check("systemctl reload kmodd")
    assert drift(vm) == {(INFO, "blacklist"), (SLOW, "blacklist")}
    config(vm, "apply")
    assert drift(vm) == set()
    config(vm, "autoload", GOOD)
    assert text(vm, files) == theirs
    assert vm.run(["modprobe", INFO]).code != 0
    assert ("autoload", "", f"/etc/modules-load.d/{GOOD}.conf") in rules(vm, GOOD)
    # Another value than Ansible's, which is read later and would win: said, and nothing is written.
    clash = vm.run(["kmodctl", "config", "options", PARAMS, "level=6"])
    assert (clash.code, f"/etc/modprobe.d/{PARAMS}.conf, line 1" in " ".join(clash.stderr.split())) == (5, True)
    # Ansible finds everything as it left it.
    ours = text(vm, f"{AUTOLOAD} {BLACKLIST}")
    assert play(
        vm, modprobe(PARAMS, state="present", persistent="present", params="level=4"), blacklist(INFO), blacklist(SLOW)
    ) == [False, False, True]
    assert text(vm, f"{AUTOLOAD} {BLACKLIST}") == ours
    # kmodd's own go, Ansible's stay.
    config(vm, "blacklist", INFO, "--off")
    config(vm, "blacklist", SLOW, "--off")
    config(vm, "autoload", GOOD, "--off")
    assert vm.run(f"ls {OURS}").stdout == ""
    assert rules(vm, SLOW) == rules(vm, INFO) == {("blacklist", "", "/etc/modprobe.d/blacklist-ansible.conf")}
    assert text(vm, f"/etc/modprobe.d/{PARAMS}.conf") == f"options {PARAMS} level=4\n"
    vm.check(["modprobe", "-r", PARAMS])
    vm.check("systemctl restart systemd-modules-load.service")
    assert vm.check(f"cat /sys/module/{PARAMS}/parameters/level").strip() == "4"


# --- the collection of kmodd ------------------------------------------------------------------------------------------

DESIRED: Sequence[Mapping[str, Any]] = (
    {"kmodd.kmodd.module": {"name": PARAMS, "parameters": {"level": 7, "read_only": 3}, "persistent": True}},
    {"kmodd.kmodd.rule": {"name": INFO, "kind": "blacklist", "hard": True, "reason": "a test"}},
    {"kmodd.kmodd.desired_state": {"name": "test", "modules": {GOOD: {"state": "loaded", "autoload": True}}}},
)
REFUSED: Mapping[str, Any] = {
    "kmodd.kmodd.desired_state": {"name": "test", "content": f'[module.{GOOD}]\nstate = "loadde"\n'}
}
LOOK: Mapping[str, Any] = {"ansible.builtin.raw": f"ls {OURS} {WISHES}; cut -d' ' -f1 /proc/modules"}


def results(vm: Machine, tasks: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """What tasks return, those that fail among them; and what Ansible prints."""
    noted = [{**task, "register": f"r{number}", "ignore_errors": True} for number, task in enumerate(tasks)]
    names = ", ".join(f"r{number}" for number in range(len(tasks)))
    note = {"ansible.builtin.copy": {"content": f"{{{{ [{names}] | to_json }}}}", "dest": "/root/results.json"}}
    done = playbook(vm, [*noted, note])
    rows: list[dict[str, Any]] = json.loads(vm.read_file("/root/results.json"))
    return rows, done.stdout


@pytest.mark.timeout(600)
def test_the_collection_brings_a_machine_to_its_state_once(vm: Machine) -> None:
    """In one playbook, for Ansible takes ten seconds to start: in check mode, then really, then again."""
    vm.copy_in(ROOT / "ansible", f"{COLLECTIONS}/ansible_collections/kmodd/kmodd")
    checked = [{**task, "check_mode": True, "diff": True} for task in (DESIRED[0], DESIRED[2])]
    rows, printed = results(vm, [*checked, LOOK, *DESIRED, *DESIRED, REFUSED])
    foreseen, look, done, again, refused = rows[:2], rows[2], rows[3:6], rows[6:9], rows[9]
    # In check mode nothing changes, and the diff shows what would.
    assert [row["changed"] for row in foreseen] == [True, True], printed
    assert foreseen[0]["modules"] == [PARAMS]
    assert foreseen[1]["steps"][0]["module"] == GOOD
    assert f"+[module.{GOOD}]" in printed
    assert len(look["stdout_lines"]) > 3
    assert not [line for line in look["stdout_lines"] if line.startswith("/etc/") or line in (PARAMS, GOOD, INFO)]
    # Then it is done. kmodd_test_params keeps even levels, which is no difference the next time.
    assert [row["changed"] for row in done] == [True, True, True], printed
    assert done[0]["diff"]["after"]["parameters"] == {"level": "6", "read_only": "3"}
    assert [row["action"] for row in done[2]["results"]] == ["load", "enable-autoload"]
    assert done[2]["drift"] == []
    assert vm.check(f"cat /sys/module/{PARAMS}/parameters/level").strip() == "6"
    assert [row["changed"] for row in again] == [False, False, False], printed
    assert again[2]["drift"] == []
    # What the service refuses names the line, and the file is as it was: the desired state is what it has been.
    assert (refused["failed"], refused["error"], bool(refused["hint"])) == (True, "Conflict", True), printed
    assert (refused["evidence"]["file"], refused["evidence"]["line"]) == (WISHES, 2)
    assert b"loadde" not in vm.read_file(WISHES)
    # What stands there is what modprobe and systemd obey.
    assert vm.run(["modprobe", INFO]).code != 0
    vm.check(f"rmmod {PARAMS} {GOOD} && systemctl restart systemd-modules-load.service")
    assert vm.check(f"cat /sys/module/{PARAMS}/parameters/read_only").strip() == "3"
    assert vm.run(["test", "-d", f"/sys/module/{GOOD}"]).code == 0
