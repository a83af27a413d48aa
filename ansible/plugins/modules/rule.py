#!/usr/bin/python
# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodd.kmodd.rule`: one rule about a kernel module in kmodd's own files, as `kmodctl config` writes it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: rule
short_description: Blacklist kernel modules, set their options, load them at boot
version_added: 0.1.0
description:
  - Writes one rule about a kernel module to C(/etc/modprobe.d/kmodd-blacklist.conf), C(/etc/modprobe.d/kmodd-options.conf) or
    C(/etc/modules-load.d/kmodd.conf). systemd, modprobe, udev and the initramfs read these files, whether kmodd runs or not.
  - Rules in files of other programs are neither changed nor counted. A rule that one of them overrides is an error that names it.
  - Loads and unloads nothing. M(kmodd.kmodd.module) does.
author: kmodd maintainers (!UNKNOWN)
extends_documentation_fragment:
  - kmodd.kmodd.kmodd
  - kmodd.kmodd.kmodd.changes
options:
  name:
    description: Name of the module. C(-) and C(_) are equivalent.
    type: str
    required: true
  kind:
    description:
      - C(blacklist) keeps the module from being loaded for a device or alias. See C(hard).
      - C(options) gives it C(parameters) whenever any program loads it.
      - C(autoload) has it loaded at every boot.
    type: str
    choices: [autoload, blacklist, options]
    required: true
  state:
    description: Whether kmodd's own file has this rule.
    type: str
    choices: [present, absent]
    default: present
  hard:
    description: With C(kind=blacklist), the module cannot be loaded by name or as a dependency either.
    type: bool
    default: false
  parameters:
    description:
      - With C(kind=options), the parameters of the module; they replace all others in kmodd's file. Values are strings, integers,
        booleans (1 and 0) or lists of these.
    type: dict
seealso:
  - module: kmodd.kmodd.module
  - module: kmodd.kmodd.desired_state
"""

EXAMPLES = r"""
- name: Keep FireWire out, by name too
  kmodd.kmodd.rule:
    name: firewire-core
    kind: blacklist
    hard: true
    reason: no DMA from outside

- name: Create no bonding interface when the module is loaded
  kmodd.kmodd.rule:
    name: bonding
    kind: options
    parameters:
      max_bonds: 0

- name: Do not load it at boot any more
  kmodd.kmodd.rule:
    name: bonding
    kind: autoload
    state: absent
"""

RETURN = r"""
rules:
  description: What kmodd's own files say about the module; in check mode what they would say.
  returned: success
  type: dict
  contains:
    autoload:
      description: Whether it is loaded at boot.
      type: bool
    options:
      description: Its parameters.
      type: dict
    blacklist:
      description: C(soft), C(hard) or C(none).
      type: str
error:
  description: Name of kmodd's error, such as C(Conflict).
  returned: failure
  type: str
hint:
  description: What helps, as a command or a sentence; may be empty.
  returned: failure
  type: str
evidence:
  description: Facts about the failure that are known, such as C(file) and C(line) of a rule that overrides this one.
  returned: failure
  type: dict
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..module_utils.own_rules import HARD, NONE, SOFT, OwnRules, bring_rules, read_rules
from ..module_utils.session import REASON, run, spelled

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

    from kmodd.client import Client

ARGUMENTS = {
    "name": {"type": "str", "required": True},
    "kind": {"type": "str", "choices": ["autoload", "blacklist", "options"], "required": True},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "hard": {"type": "bool", "default": False},
    "parameters": {"type": "dict"},
    "reason": REASON,
}


async def bring(client: Client, module: AnsibleModule) -> dict[str, Any]:
    """Write the rule, or remove it."""
    from kmodd.client.configuration import Configuration

    name, reason = module.params["name"], module.params["reason"]
    configuration = Configuration(client)
    exact = module.params["kind"] == "options"
    now = await read_rules(configuration, name, exact=exact)
    desired = _desired(now, module.params)
    await bring_rules(configuration, name, now, desired, reason=reason, dry_run=module.check_mode)
    after = desired if module.check_mode else await read_rules(configuration, name, exact=False)
    header = f"kmodd's rules about {name}"
    return {
        "changed": now != desired,
        "rules": after.shown(),
        "diff": {"before_header": header, "after_header": header, "before": now.shown(), "after": after.shown()},
    }


def _desired(now: OwnRules, params: dict[str, Any]) -> OwnRules:
    from kmodd.errors import InvalidArgs

    kind, present, parameters = params["kind"], params["state"] == "present", spelled(params["parameters"])
    if params["hard"] and not (present and kind == "blacklist"):
        raise InvalidArgs("hard requires kind blacklist and state present", argument="hard")
    if bool(parameters) != (present and kind == "options"):
        problem = "kind options with state present requires parameters, and nothing else takes them"
        raise InvalidArgs(problem, argument="parameters")
    if kind == "blacklist":
        return replace(now, blacklist=(HARD if params["hard"] else SOFT) if present else NONE)
    if kind == "options":
        return replace(now, options=parameters)
    return replace(now, autoload=present)


def main() -> None:
    """Run as Ansible's module."""
    run(ARGUMENTS, bring)


if __name__ == "__main__":
    main()
