#!/usr/bin/python
# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodd.kmodd.response`: the response to a vulnerability in kernel modules."""

from __future__ import annotations

DOCUMENTATION = r"""
module: response
short_description: Respond to a vulnerability in kernel modules
version_added: 0.1.0
description:
  - Assesses each installed kernel, blocks the affected modules by every route, unloads them, and proves the result.
  - If something uses a module, nothing is blocked and the task fails with C(uses), unless C(force_in_use) is set.
  - A response ends by itself when kmodd starts on a fixed kernel.
author: kmodd maintainers (!UNKNOWN)
extends_documentation_fragment:
  - kmodd.kmodd.kmodd
  - kmodd.kmodd.kmodd.changes
options:
  id:
    description:
      - Identifier of the vulnerability, such as C(CVE-2026-31431), of which kmodd has a record, or of a response to modules, such as
        C(module:algif_aead).
    type: str
  modules:
    description: Modules to block in every kernel, in place of a record.
    type: list
    elements: str
  state:
    description: C(absent) ends the response, and removes the rules that it wrote.
    type: str
    choices: [present, absent]
    default: present
  force_in_use:
    description: Block the modules although something uses them. Modules in use stay loaded, and are in C(still_loaded).
    type: bool
    default: false
seealso:
  - module: kmodd.kmodd.surface
"""

EXAMPLES = r"""
- name: Respond to a CVE on every node
  kmodd.kmodd.response:
    id: CVE-2026-31431
  register: response

- name: Name the nodes that are not proven safe
  ansible.builtin.debug:
    var: response.kernels
  when: not response.proven

- name: End it
  kmodd.kmodd.response:
    id: CVE-2026-31431
    state: absent
"""

RETURN = r"""
id:
  description: Identifier of the response.
  returned: always
  type: str
proven:
  description: In all kernels that are affected or unknown, no name and no alias loads the modules, and none of them is loaded.
  returned: with C(state=present)
  type: bool
stage:
  description: C(assessed) if nothing was done, C(in-use) if it stopped for a module in use, C(responded).
  returned: with C(state=present)
  type: str
kernels:
  description: Installed kernels, each with C(kernel), C(verdict), C(because), C(blocked) and others.
  returned: with C(state=present)
  type: list
  elements: dict
uses:
  description: The modules, each with C(module), C(loaded), C(in_use), C(users), C(free) and others.
  returned: with C(state=present)
  type: list
  elements: dict
unloaded:
  description: Modules that were unloaded.
  returned: with C(state=present)
  type: list
  elements: str
still_loaded:
  description: Modules that could not be unloaded, with the reason.
  returned: with C(state=present)
  type: dict
modules:
  description: Modules whose rules were removed.
  returned: with C(state=absent)
  type: list
  elements: str
error:
  description: Name of kmodd's error, such as C(NoSuchResponse).
  returned: failure
  type: str
hint:
  description: What helps, as a command or a sentence; may be empty.
  returned: failure
  type: str
evidence:
  description: Facts about the failure that are known.
  returned: failure
  type: dict
"""

from typing import TYPE_CHECKING, Any, Sequence

from ..module_utils.session import REASON, canonical, failure, run, snake_case

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

    from kmodd.client import Client
    from kmodd.client.surface import AttackSurface, ResponseRow

ARGUMENTS = {
    "id": {"type": "str"},
    "modules": {"type": "list", "elements": "str"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "force_in_use": {"type": "bool", "default": False},
    "reason": REASON,
}
OPEN = ("affected", "unknown")
"""Verdicts about a kernel for which modules are blocked."""


async def bring(client: Client, module: AnsibleModule) -> dict[str, Any]:
    """Respond, or end a response."""
    from kmodd.client.surface import AttackSurface
    from kmodd.errors import InvalidArgs

    surface, params = AttackSurface(client), module.params
    if params["state"] == "present":
        return await _respond(surface, module)
    if params["id"] is None:
        raise InvalidArgs("state absent requires id", argument="id")
    return await _end(surface, module)


def _rules(rows: Sequence[ResponseRow]) -> dict[str, list[str]]:
    """The modules that each response has rules for."""
    return {row.id: sorted(row.rules) for row in rows}


async def _respond(surface: AttackSurface, module: AnsibleModule) -> dict[str, Any]:
    params, responses = module.params, await surface.responses()
    before = _rules(responses)
    options: dict[str, Any] = {"reason": params["reason"], "dry-run": True}
    if params["modules"]:
        options["modules"] = [canonical(name) for name in params["modules"]]
    outcome = snake_case(await surface.data("Respond", params["id"] or "", options=options))
    in_use = [row["module"] for row in outcome["uses"] if row["in_use"]]
    affected = any(row["verdict"] in OPEN for row in outcome["kernels"])
    if in_use and affected and not params["force_in_use"]:
        module.fail_json(**outcome, **_still_used(in_use, outcome["uses"], has_rules=outcome["id"] in before))
    key = outcome["id"]
    if module.check_mode:
        modules = sorted(outcome["modules"])
        same = any((row.id, sorted(row.modules)) == (key, modules) for row in responses)
        after = {**before, **({key: modules} if affected and not same else {})}
        unloads = affected and any(row["loaded"] and not row["in_use"] for row in outcome["uses"])
    else:
        options |= {"dry-run": False, "force-in-use": params["force_in_use"]}
        outcome = snake_case(await surface.data("Respond", params["id"] or "", options=options))
        unloads = bool(outcome["unloaded"])
        after = _rules(await surface.responses())
        if outcome["stage"] == "in-use":  # since the assessment
            in_use = [row["module"] for row in outcome["uses"] if row["in_use"]]
            module.fail_json(**outcome, **_still_used(in_use, outcome["uses"], has_rules=key in before))
    changed = before.get(key) != after.get(key) or unloads
    return {**outcome, "changed": changed, "diff": _diff(key, before, after)}


async def _end(surface: AttackSurface, module: AnsibleModule) -> dict[str, Any]:
    key, before = module.params["id"], _rules(await surface.responses())
    if key not in before:
        return {"changed": False, "id": key, "modules": [], "diff": _diff(key, before, before)}
    after = {name: rules for name, rules in before.items() if name != key}
    modules = before[key]
    if not module.check_mode:
        modules = list(await surface.end_response(key, reason=module.params["reason"]))
        after = _rules(await surface.responses())
    return {"changed": True, "id": key, "modules": modules, "diff": _diff(key, before, after)}


def _still_used(names: list[str], uses: list[dict[str, Any]], *, has_rules: bool) -> dict[str, Any]:
    """The values of a task that stopped because something uses the modules."""
    from kmodd.errors import Evidence, InUse

    commands = [command for row in uses for command in row["free"]]
    hint = "; ".join(commands) or "set force_in_use to block them all the same"
    blocked = "nothing more is blocked" if has_rules else "nothing is blocked"
    return failure(InUse(f"something uses {' and '.join(names)}, {blocked}", evidence=Evidence(hint=hint)))


def _diff(key: str, before: dict[str, list[str]], after: dict[str, list[str]]) -> dict[str, Any]:
    return {
        "before_header": f"response {key}",
        "after_header": f"response {key}",
        "before": "".join(f"blocks {name}\n" for name in before.get(key, [])),
        "after": "".join(f"blocks {name}\n" for name in after.get(key, [])),
    }


def main() -> None:
    """Run as Ansible's module."""
    run(ARGUMENTS, bring, required_one_of=[("id", "modules")])


if __name__ == "__main__":
    main()
