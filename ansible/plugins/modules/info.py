#!/usr/bin/python
# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodd.kmodd.info`: what kmodd knows about the kernel's modules. It changes nothing."""

from __future__ import annotations

DOCUMENTATION = r"""
module: info
short_description: Gather information about kernel modules
version_added: 0.1.0
description:
  - Returns the modules of the running kernel, the health of system and daemon, the rules about modules and the drift from the desired
    state, and explains modules.
author: kmodd maintainers (!UNKNOWN)
extends_documentation_fragment:
  - kmodd.kmodd.kmodd
attributes:
  check_mode:
    description: Changes nothing, in C(check_mode) or not.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
options:
  gather:
    description: What to return.
    type: list
    elements: str
    choices: [modules, health, rules, drift]
    default: [modules, health, drift]
  state:
    description: With C(modules) in C(gather), the modules to list.
    type: str
    choices: [loaded, available, builtin, all]
    default: loaded
  match:
    description: With C(modules) in C(gather), a pattern over their names, such as C(nf_*).
    type: str
  explain:
    description: Names of modules to explain, such as why they are loaded, and what uses them.
    type: list
    elements: str
    default: []
seealso:
  - module: kmodd.kmodd.module
"""

EXAMPLES = r"""
- name: Fail on drift
  kmodd.kmodd.info:
    gather: [drift]
  register: kmodd
  failed_when: kmodd.drift | length > 0

- name: Report what uses the bridge
  kmodd.kmodd.info:
    gather: []
    explain: [bridge]
  register: kmodd

- name: Print the commands that end every use
  ansible.builtin.debug:
    var: kmodd.explained.bridge.free
"""

RETURN = r"""
version:
  description: Version of the daemon.
  returned: always
  type: str
  sample: 0.1.0
kernel:
  description: Release of the running kernel.
  returned: always
  type: str
  sample: 6.1.0-40-amd64
modules:
  description: Modules, each with C(name) and C(state), and if it is loaded with C(size), C(references), C(holders) and C(taint).
  returned: if gathered
  type: list
  elements: dict
health:
  description: C(status), C(checks), and facts about the kernel such as C(lockdown) and C(signature_enforced).
  returned: if gathered
  type: dict
rules:
  description: Every rule about modules, with C(kind), C(module), C(value), C(file), C(line), C(ours), C(shadowed_by) and C(findings).
  returned: if gathered
  type: list
  elements: dict
drift:
  description: Differences from the desired state, with C(module), C(kind), C(wanted), C(actual) and C(hint).
  returned: if gathered
  type: list
  elements: dict
explained:
  description: Explanations by module, with C(state), C(because), C(users), C(free), C(consequences) and others.
  returned: always
  type: dict
error:
  description: Name of kmodd's error.
  returned: failure
  type: str
hint:
  description: What helps, as a command or a sentence; may be empty.
  returned: failure
  type: str
"""

from typing import TYPE_CHECKING, Any

from ..module_utils.session import run, snake_case

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

    from kmodd.client import Client

ARGUMENTS = {
    "gather": {
        "type": "list",
        "elements": "str",
        "choices": ["modules", "health", "rules", "drift"],
        "default": ["modules", "health", "drift"],
    },
    "state": {"type": "str", "choices": ["loaded", "available", "builtin", "all"], "default": "loaded"},
    "match": {"type": "str"},
    "explain": {"type": "list", "elements": "str", "default": []},
}


async def gather(client: Client, module: AnsibleModule) -> dict[str, Any]:
    """Ask for what the task names."""
    from kmodd.client.configuration import Configuration

    params, configuration = module.params, Configuration(client)
    properties = await client.properties()
    result: dict[str, Any] = {
        "changed": False,
        "version": properties.get("Version", ""),
        "kernel": properties.get("KernelRelease", ""),
        "explained": {name: snake_case(await client.data("Explain", name)) for name in params["explain"]},
    }
    if "modules" in params["gather"]:
        options = {"state": params["state"]} | ({"match": params["match"]} if params["match"] else {})
        result["modules"] = snake_case(await client.data("ListModules", options=options))
    if "health" in params["gather"]:
        result["health"] = snake_case(await client.data("GetHealth"))
    if "rules" in params["gather"]:
        result["rules"] = snake_case(await configuration.data("Show"))
    if "drift" in params["gather"]:
        result["drift"] = snake_case(await configuration.data("GetDrift"))
    return result


def main() -> None:
    """Run as Ansible's module."""
    run(ARGUMENTS, gather)


if __name__ == "__main__":
    main()
