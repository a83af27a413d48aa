# SPDX-License-Identifier: LGPL-2.1-or-later
"""The real polkitd decides: the shipped example rule, what reaches rules, and who is turned away."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from kmodd.core.audit.limit import RECORDS_MAX
from kmodd.dbus.interface_xml import Contract
from tests.system.client import BusError, Client, Kmodctl, records, soon
from tests.system.service import CALL
from tests.vm.channel import Result
from tests.vm.machine import Machine

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = "/etc/polkit-1/rules.d/50-netadm-dummy.rules"
RULE = "/etc/polkit-1/rules.d/10-exact.rules"
ACTIONS = {
    f"org.kmodd1.{name}"
    for name in (
        "activate-module",
        "configure",
        "import-module",
        "inspect",
        "load",
        "lock",
        "manage-notifications",
        "override-policy",
        "read-history",
        "set-parameter",
        "surface",
        "surface-allow",
        "unload",
    )
}


def load(vm: Machine, module: str, user: str, parameters: str = "0") -> Result:
    """Nobody is there to type a password."""
    return vm.run(f"{CALL} Load 'sa{{ss}}a{{sv}}' {module} {parameters} 0", user=user, timeout=60)


def loaded(vm: Machine, module: str) -> bool:
    return vm.run(["test", "-e", f"/sys/module/{module}/initstate"]).code == 0


def restart_polkit(vm: Machine) -> None:
    """So that it certainly has read its rules; systemd's limit of starts is for services that fail."""
    vm.run("systemctl reset-failed polkit.service; systemctl restart polkit.service", timeout=60, check=True)


@pytest.fixture
def example_rule(vm: Machine) -> Iterator[None]:
    """The rule as shipped, in force once polkit has noticed it."""
    vm.write_file(EXAMPLE, (ROOT / "polkit/examples/50-netadm-dummy.rules").read_bytes())
    restart_polkit(vm)
    yield
    vm.run(["modprobe", "-r", "dummy"])
    vm.run(["rm", EXAMPLE], check=True)
    restart_polkit(vm)


def test_polkit_knows_every_action(vm: Machine) -> None:
    known = set(vm.check("pkaction | grep org.kmodd1").split())
    assert known == ACTIONS
    for action in sorted(ACTIONS):
        assert "auth_admin" in vm.check(["pkaction", "--verbose", "--action-id", action])


@pytest.mark.parametrize("user", ["alice", "bob"])
def test_without_a_rule_only_root_loads(vm: Machine, user: str) -> None:
    answer = load(vm, "dummy", user)
    assert "interactive authentication required" in answer.stderr
    assert not loaded(vm, "dummy")


def test_a_missing_password_agent_is_an_error(vm: Machine) -> None:
    answer = vm.run("kmodctl --no-ask-password load dummy", user="alice")
    assert answer.code == 4, "AccessDenied and InteractiveAuthorizationRequired have this exit status"
    assert not loaded(vm, "dummy")


@pytest.mark.usefixtures("example_rule")
def test_group_may_load_and_unload_the_module_of_the_rule(vm: Machine) -> None:
    assert load(vm, "dummy", "bob").check().stdout.strip() == 'as 1 "dummy"'
    assert loaded(vm, "dummy")
    vm.run(f"{CALL} Unload 'sa{{sv}}' dummy 0", user="bob", check=True)
    assert not loaded(vm, "dummy")


@pytest.mark.usefixtures("example_rule")
def test_group_may_load_nothing_else(vm: Machine) -> None:
    assert load(vm, "loop", "bob").code != 0
    assert not loaded(vm, "loop")


@pytest.mark.usefixtures("example_rule")
def test_group_may_not_add_parameters(vm: Machine) -> None:
    assert load(vm, "dummy", "bob", "1 numdummies 3").code != 0
    assert not loaded(vm, "dummy")


@pytest.mark.usefixtures("example_rule")
def test_other_users_may_not_load_it(vm: Machine) -> None:
    assert load(vm, "dummy", "alice").code != 0
    assert not loaded(vm, "dummy")


@pytest.mark.usefixtures("example_rule")
def test_other_actions_stay_closed_to_the_group(vm: Machine) -> None:
    answer = vm.run(f"{CALL} GetHistory 'a{{sv}}' 0", user="bob")
    assert answer.code != 0


GOOD = "kmodd_test_good"
# With what each method would succeed if it were allowed: a request that cannot succeed is refused before polkit is asked.
CLOSED = {
    "Manager": [
        "Load sa{ss}a{sv} vfat 0 0",
        "Unload sa{sv} dummy 0",
        "Reload sa{ss}a{sv} dummy 0 0",
        "Batch a(ssa{ss})a{sv} 1 load vfat 0 0",
        "Hold sa{ss}a{sv} vfat 0 0",
        "SetParameter sss kmodd_test_params a_bool N",
        "ResetFailed s dummy",
        "GetHistory a{sv} 0",
    ],
    "Job": ["Cancel"],
    "Configuration": [
        "SetAutoload sba{ss}a{sv} dummy true 0 0",
        "SetOptions sa{ss}a{sv} loop 1 max_loop 4 0",
        "SetBlacklisted sba{sv} dummy true 0",
        "Apply a{sv} 0",
        "Reload",
    ],
    "Store": [
        "Import",
        f"Activate ssa{{sv}} {GOOD} 2 0",
        f"Deactivate sa{{sv}} {GOOD} 0",
        f"Remove ss {GOOD} 2",
    ],
    "Surface": [
        "GetNeeded a{sv} 0",
        "Plan a{sv} 0",
        "Apply a{sv} 0",
        "Confirm a{sv} 0",
        "Revert a{sv} 0",
        "Check a{sv} 0",
        "Respond sa{sv} CVE-2026-31431 0",
        "EndResponse sa{sv} module:algif_rng 0",
        "GetRefused a{sv} 0",
        "Lock a{sv} 0",
    ],
}
ON_TRIAL = {"Configuration": ["Confirm a{sv} 0", "Revert a{sv} 0"]}
"""The same while the desired state is on trial."""
TRIED = "/etc/kmodd/modules.d/50-trial.toml"


def test_the_list_of_what_is_closed_is_complete() -> None:
    """Whatever is not public by the contract is tried."""
    contract = Contract.parse((ROOT / "dbus/org.kmodd1.xml").read_text())
    guarded = {
        (name.removeprefix("org.kmodd1."), method)
        for name, interface in contract.interfaces.items()
        for method, row in interface.methods.items()
        if not row.public
    }
    calls = [*CLOSED.items(), *ON_TRIAL.items()]
    assert {(interface, call.split()[0]) for interface, members in calls for call in members} == guarded


STATE = (
    "grep -v ^kmodd_test_init_wait /proc/modules; cat /sys/module/kmodd_test_params/parameters/a_bool;"
    " find /etc/modprobe.d /etc/modules-load.d /etc/kmodd /lib/modules/*/updates /var/lib/kmodd/store ! -type d"
    " -printf '%p %s %T@\\n' | sort"
)


@pytest.fixture
def _everything_at_hand(vm: Machine, kmodctl: Kmodctl) -> Iterator[None]:
    """What the calls of CLOSED are about: loaded modules, a live parameter, two stored versions, and an operation that waits."""
    vm.check(
        f"modprobe dummy && modprobe kmodd_test_params && cd /lib/modules/$(uname -r)/updates/kmodd-test &&"
        f" mv {GOOD}.ko /root && depmod -a",
        timeout=180,
    )
    for words in (
        ("import", f"/root/{GOOD}.ko", "--version", "1"),
        ("import", "/usr/lib/kmodd-test/broken/kmodd_test_vermagic_release.ko", "--version", "2"),
        ("activate", GOOD, "1"),
    ):
        assert kmodctl("store", *words, seconds=180).code == 0, words
    assert kmodctl("respond", "--module", "algif_rng", seconds=180).code == 0
    # A load that waits is cancelled when busctl hangs up.
    patient = CALL.replace("--timeout=120", "--timeout=600")
    loading = vm.start(f"{patient} Load 'sa{{ss}}a{{sv}}' kmodd_test_init_wait 0 1 timeout u 600")
    soon(lambda: len(jobs(vm)) == 1, "the load")
    waiting = vm.start(f"{patient} Load 'sa{{ss}}a{{sv}}' kmodd_test_init_wait 0 0")
    soon(lambda: len(jobs(vm)) == 2, "the load behind it")
    yield
    vm.check("echo 1 > /sys/kernel/kmodd_test_init_wait/release")
    waiting.wait(120)
    loading.wait(120)
    assert kmodctl("respond", "end", "module:algif_rng", seconds=180).code == 0
    for ending in (("deactivate", GOOD), ("remove", GOOD, "1"), ("remove", GOOD, "2")):
        assert kmodctl("store", *ending, seconds=180).code == 0, ending
    vm.check(
        f"mv /root/{GOOD}.ko /lib/modules/$(uname -r)/updates/kmodd-test/ && depmod -a;"
        f" modprobe -r dummy kmodd_test_params kmodd_test_init_wait",
        timeout=180,
    )


def jobs(vm: Machine) -> list[str]:
    """The paths of the operations under way, the oldest first."""
    listed = vm.check("busctl --list tree org.kmodd1 | grep /job/ || true").split()
    return sorted(listed, key=lambda path: int(path.rpartition("/")[2]))


@pytest.mark.usefixtures("_everything_at_hand")
def test_nothing_that_changes_is_open_to_an_ordinary_user(vm: Machine, kmodctl: Kmodctl) -> None:
    begin = vm.check("date +@%s.%N").strip()

    def state() -> tuple[str, str]:
        return vm.check(STATE), kmodctl("--json", "store", "list").out

    def try_all(closed: Mapping[str, Sequence[str]]) -> None:
        for interface, calls in closed.items():
            path = waiting if interface == "Job" else "/org/kmodd1"
            for call in calls:
                command = f"busctl call org.kmodd1 {path} org.kmodd1.{interface} {_quoted(call)}"
                if call == "Import":  # busctl cannot hand over a file
                    command = "kmodctl store import --shadow /usr/lib/kmodd-test/broken/dummy_unsigned.ko"
                answer = vm.run(command, user="alice")
                assert answer.code != 0, call
                assert "interactive authentication required" in answer.stderr, (call, answer.stderr)

    before = state()
    (_, waiting) = jobs(vm)
    try_all(CLOSED)
    assert waiting in jobs(vm), "nobody but who asked for it cancels it"
    assert state() == before
    vm.write_file(TRIED, '[module.ifb]\nstate = "loaded"\n')
    assert kmodctl("config", "apply", "--try", "1h").code == 0
    before = state()
    try_all(ON_TRIAL)
    assert state() == before
    assert kmodctl("config", "revert").code == 0
    assert not loaded(vm, "ifb")
    vm.check(f"rm {TRIED}")
    count = sum(len(calls) for closed in (CLOSED, ON_TRIAL) for calls in closed.values())
    denied = ("KMODD_EVENT=authorization.denied", "KMODD_UID=" + vm.check("id -u alice").strip(), "--since", begin)
    soon(lambda: len(records(vm, *denied)) >= count, "a record for each")
    assert len(records(vm, *denied)) == count


def test_refusals_do_not_fill_the_journal(vm: Machine, kmodctl: Kmodctl) -> None:
    """Beyond a hundred a minute they are counted, in one record and in the metrics."""
    asked = 252  # more than a hundred in each of the two minutes that these calls may fall into
    mine = ("KMODD_UID=" + vm.check("id -u alice").strip(), "--since", vm.check("date +@%s.%N").strip())
    before = denials(vm)
    alice = Client(vm, user="alice")
    try:
        # What cannot succeed is refused without polkit, which takes its time; what polkit refuses comes last.
        for _ in range(asked // 3):  # a user has four operations under way at most
            hopeless = [alice.begin("Load", "kmodd_nowhere", {}, {}) for _ in range(3)]
            for call in hopeless:
                with pytest.raises(BusError, match="NoSuchModule"):
                    call.result()
        for _ in range(3):
            with pytest.raises(BusError, match="InteractiveAuthorizationRequired"):
                alice.call("Load", "dummy", {}, {})
    finally:
        alice.process.end()
    assert denials(vm) - before == 3

    def counted() -> int:
        singly = len(records(vm, "KMODD_EVENT=operation.failed", "KMODD_EVENT=authorization.denied", *mine))
        assert singly <= 2 * RECORDS_MAX
        return singly + sum(int(one["KMODD_UNWRITTEN"]) for one in records(vm, COLLAPSED, *mine))

    soon(lambda: counted() == asked + 3, "each refusal in the journal, singly or counted", 90)
    told = records(vm, COLLAPSED, *mine)[-1]
    assert told["MESSAGE"] in kmodctl("log", "-n", "50").out


COLLAPSED = "KMODD_EVENT=refusals.collapsed"


def denials(vm: Machine) -> int:
    """What the metrics say of Load."""
    found = re.search(r'"kmodd_denials_total" "counter" 1 "method" "Load" (\d+)', vm.check(f"{CALL} GetMetrics"))
    return int(found[1]) if found else 0


def _quoted(call: str) -> str:
    member, *rest = call.split()
    return " ".join([member, *(f"'{word}'" for word in rest)])


def allow_only(vm: Machine, user: str, **details: str) -> None:
    """A rule that says yes to exactly these details; polkit compares, so only what really reached it counts."""
    wanted = " && ".join(f"action.lookup('{key}') === {json.dumps(value)}" for key, value in details.items())
    rule = (
        f"polkit.addRule(function(action, subject) {{ if (subject.user === '{user}' && "
        f"action.id === 'org.kmodd1.load' && {wanted}) return polkit.Result.YES; }});"
    )
    vm.write_file(RULE, rule)
    restart_polkit(vm)


@pytest.fixture
def _no_rule_left(vm: Machine) -> Iterator[None]:
    yield
    vm.run("modprobe -r dummy; modprobe -r vfat")
    vm.run(["rm", RULE], check=True)
    restart_polkit(vm)


@pytest.mark.usefixtures("_no_rule_left")
def test_parameters_reach_rules(vm: Machine) -> None:
    allow_only(vm, "alice", action="load", module="dummy", modules="dummy", parameters="numdummies=2")
    assert load(vm, "dummy", "alice", "1 numdummies 3").code != 0
    assert load(vm, "dummy", "alice").code != 0
    assert not loaded(vm, "dummy")
    load(vm, "dummy", "alice", "1 numdummies 2").check()
    assert loaded(vm, "dummy")


@pytest.mark.usefixtures("_no_rule_left")
def test_dependencies_and_the_canonical_name_reach_rules(vm: Machine) -> None:
    allow_only(vm, "alice", action="load", module="vfat", modules="fat vfat")
    assert load(vm, "msdos", "alice").code != 0, "it needs fat as well, but is another module"
    load(vm, "fs-vfat", "alice").check()
    assert loaded(vm, "vfat")


def own_loads_alone(vm: Machine, rule: str) -> None:
    """A rule by which alice may do anything, but unload only what kmodd loaded for her."""
    uid = vm.check("id -u alice").strip()
    vm.write_file(
        rule,
        "polkit.addRule(function(action, subject) {\n"
        "  if (subject.user !== 'alice' || action.id.indexOf('org.kmodd1.') !== 0) return polkit.Result.NOT_HANDLED;\n"
        f"  if (action.id === 'org.kmodd1.unload' && action.lookup('loaded-by') !== '{uid}') return polkit.Result.NO;\n"
        "  return polkit.Result.YES;\n"
        "});\n",
    )
    restart_polkit(vm)


@pytest.mark.usefixtures("_no_rule_left")
def test_a_rule_about_who_loaded_holds_for_every_way_to_unload(vm: Machine) -> None:
    own_loads_alone(vm, RULE)
    batch = f"{CALL} Batch 'a(ssa{{ss}})a{{sv}}' 2 load dummy 0 unload dummy 0 0"
    ways = (batch, f"{CALL} Unload 'sa{{sv}}' dummy 0", "kmodctl --no-ask-password respond --module dummy")
    vm.run(batch, user="alice", timeout=60, check=True)
    assert not loaded(vm, "dummy"), "loaded and unloaded by the same request"
    load(vm, "dummy", "root").check()
    for way in ways:
        answer = vm.run(way, user="alice", timeout=180)
        assert answer.code != 0, way
        assert "polkit does not allow this" in answer.stderr or "Access denied" in answer.stderr, (way, answer.stderr)
        assert loaded(vm, "dummy"), way
    assert vm.run("grep -s dummy /etc/modprobe.d/kmodd-blacklist.conf").code != 0
    vm.check("kmodctl unload dummy")
    load(vm, "dummy", "alice").check()
    vm.run(ways[1], user="alice", timeout=60, check=True)
    assert not loaded(vm, "dummy")


def test_without_polkit_everything_is_refused_and_reading_goes_on(vm: Machine) -> None:
    vm.run("systemctl mask --runtime --now polkit.service", timeout=60, check=True)
    try:
        assert load(vm, "dummy", "alice").code != 0
        assert not loaded(vm, "dummy")
        vm.run(f"{CALL} Explain sa{{sv}} loop 0", user="alice", check=True)
        load(vm, "dummy", "root").check()
    finally:
        vm.run("modprobe -r dummy; systemctl unmask --runtime polkit.service", timeout=60, check=True)
