# SPDX-License-Identifier: LGPL-2.1-or-later
"""The API, the bus policy, the activation file, the unit and polkit's actions say the same."""

import json
import re
import xml.etree.ElementTree as ET
from configparser import RawConfigParser
from pathlib import Path

from kmodd.client.replies import hint_for
from kmodd.errors import ERRORS

ROOT = Path(__file__).resolve().parents[2]
API = ET.parse(ROOT / "dbus/org.kmodd1.xml").getroot()  # noqa: S314 - our own file
POLICY = ET.parse(ROOT / "polkit/org.kmodd1.policy").getroot()  # noqa: S314 - our own file
BUS = ET.parse(ROOT / "dbus/org.kmodd1.conf").getroot()  # noqa: S314 - our own file
ACTION = "org.kmodd1.Action"
# Named by the contract, asked for by parts that are no method of this API: options of public methods and of Load, and
# other programs.
WITHOUT_METHOD = {"inspect", "override-policy", "surface-allow", "manage-notifications"}
STANDARD = {f"org.freedesktop.DBus.{name}" for name in ("ObjectManager", "Properties", "Introspectable", "Peer")}


def api_actions() -> set[str]:
    """Every polkit action that a method names."""
    return {
        word
        for annotation in API.iterfind(f".//method/annotation[@name='{ACTION}']")
        for word in annotation.get("value", "").split()
        if word.startswith("org.")
    }


def policy_actions() -> dict[str, ET.Element]:
    """The actions polkit knows, by their name."""
    return {action.get("id", ""): action for action in POLICY.iterfind("action")}


def test_every_method_names_its_gate() -> None:
    for interface in API.iter("interface"):
        for method in interface.iterfind("method"):
            gates = method.findall(f"annotation[@name='{ACTION}']")
            assert len(gates) == 1, f"{interface.get('name')}.{method.get('name')}"
            for word in gates[0].get("value", "").split():
                assert word in {"public", "per-operation", "owner"} or word in policy_actions(), word


def test_every_polkit_action_is_used() -> None:
    asked = api_actions() | {f"org.kmodd1.{name}" for name in WITHOUT_METHOD}
    assert set(policy_actions()) == asked


def test_every_action_wants_an_administrator() -> None:
    for name, action in policy_actions().items():
        defaults = {element.tag: element.text for element in action.iterfind("defaults/*")}
        assert defaults.keys() == {"allow_any", "allow_inactive", "allow_active"}
        assert set(defaults.values()) == {"auth_admin"}, name
        assert action.findtext("description")
        assert action.findtext("message")


def test_no_authorization_is_kept_by_polkit() -> None:
    """What polkit keeps holds for the action with any details: for other modules and parameters than were consented to."""
    files = [path for path in (ROOT / "polkit").rglob("*") if path.is_file()]
    assert any(path.suffix == ".policy" for path in files)
    for path in files:
        if path.suffix == ".policy":
            defaults = ET.parse(path).getroot().iterfind(".//defaults/*")  # noqa: S314 - our own file
            assert not [element.text for element in defaults if "_keep" in (element.text or "")], path
        else:
            assert "_KEEP" not in path.read_text(), path


def test_only_root_may_hand_details_to_rules() -> None:
    for name, action in policy_actions().items():
        owner = action.find("annotate[@key='org.freedesktop.policykit.owner']")
        assert owner is not None, name
        others = " unix-user:kmodd-notifier" if name == "org.kmodd1.manage-notifications" else ""
        assert owner.text == f"unix-user:root{others}"


def test_prompts_name_what_they_authorize() -> None:
    for name in ("load", "unload", "set-parameter", "override-policy", "configure", "activate-module"):
        message = policy_actions()[f"org.kmodd1.{name}"].findtext("message") or ""
        assert "$(module" in message, name


def test_the_bus_lets_through_the_interfaces_of_the_api_and_no_other() -> None:
    rules = BUS.findall("policy[@context='default']/*")
    assert {rule.tag for rule in rules} == {"allow"}
    assert {rule.get("send_destination") for rule in rules} == {"org.kmodd1"}
    with_methods = {i.get("name") for i in API.iter("interface") if i.find("method") is not None}
    assert {rule.get("send_interface") for rule in rules} == with_methods | STANDARD


def test_only_root_owns_the_name() -> None:
    owners = [(policy.attrib, rule.attrib) for policy in BUS for rule in policy.iterfind("allow[@own]")]
    assert owners == [({"user": "root"}, {"own": "org.kmodd1"})]


def test_activation_goes_through_systemd() -> None:
    activation, unit = RawConfigParser(), RawConfigParser(strict=False)
    activation.read(ROOT / "dbus/org.kmodd1.service")
    unit.read(ROOT / "systemd/kmodd.service.in")
    section = activation["D-BUS Service"]
    assert section["SystemdService"] == "kmodd.service"
    assert section["Exec"] == "/bin/false"
    assert section["Name"] == unit["Service"]["BusName"] == "org.kmodd1"


def test_titles_and_hints_of_errors_in_cockpit_are_kmodds() -> None:
    text = (ROOT / "cockpit/errors.js").read_text()
    (table,) = re.findall(r"^export const ERRORS = (\{.*^\});$", text, re.MULTILINE | re.DOTALL)
    expected = {error.name(): [error.title, hint_for(error(""), "loop")] for error in ERRORS.values()}
    assert {
        name: [title, hint.replace("{module}", "loop")] for name, (title, hint) in json.loads(table).items()
    } == expected


def test_both_pages_have_the_calls_that_the_views_make() -> None:
    """The views are shared, and import `calls.js` of the page that they are part of."""
    dashboard = ROOT / "kmodd/gateway/static/dashboard"
    exported = {
        folder: set(
            re.findall(
                r"^export (?:const|async function|function) (\w+)", (folder / "calls.js").read_text(), re.MULTILINE
            )
        )
        for folder in (ROOT / "cockpit", dashboard)
    }
    assert exported[ROOT / "cockpit"] == exported[dashboard]
    used: set[str] = set()
    for path in (dashboard / "shared").glob("*.js"):
        text = path.read_text()
        used |= set(re.findall(r"\bcalls\.(?!js\b)(\w+)", text))
        for names in re.findall(r"^import \{([^}]*)\} from \"\.\./calls\.js\";$", text, re.MULTILINE):
            used |= {name.strip() for name in names.split(",")}
    assert used == exported[dashboard]
