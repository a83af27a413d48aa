#!/usr/bin/python
# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodd.kmodd.surface`: a file of the policy for the attack surface, and the rules that follow from the policy."""

from __future__ import annotations

DOCUMENTATION = r"""
module: surface
short_description: Block kernel modules that nothing needs
version_added: 0.1.0
description:
  - Writes or removes a file in C(/etc/kmodd/surface.d), the policy for the attack surface, and applies the policy of all files.
  - Modules that the system needs to boot and to be reached are never blocked. Loaded modules are not unloaded.
  - A file that kmodd refuses is put back as it was, and the error names the line. Without C(name), the files stay as they are.
author: kmodd maintainers (!UNKNOWN)
extends_documentation_fragment:
  - kmodd.kmodd.kmodd
  - kmodd.kmodd.kmodd.changes
options:
  name:
    description: Name of the file, without directory and C(.toml).
    type: str
  state:
    description: Whether the file exists.
    type: str
    choices: [present, absent]
    default: present
  content:
    description: The text of the file, in TOML.
    type: str
  apply:
    description: Write the rules of the policy. If not, C(block) and C(release) are what this would change.
    type: bool
    default: true
  weaken:
    description: Also allow modules that are blocked now. Without it, that is an error.
    type: bool
    default: false
seealso:
  - module: kmodd.kmodd.response
notes:
  - In check mode, the policy of a file that would change is not evaluated, as kmodd reads files only in their place. Use
    C(mode = "audit") to see what it would block.
"""

EXAMPLES = r"""
- name: Block what unprivileged users could have loaded and nothing needs
  kmodd.kmodd.surface:
    name: site
    content: |
      [surface]
      mode = "enforce"
      profile = ["base"]

      [allow.sctp]
      reason = "SIGTRAN"

- name: Report what a later kernel or policy changes
  kmodd.kmodd.surface:
  check_mode: true
  register: policy
"""

RETURN = r"""
mode:
  description: C(off), C(audit) or C(enforce).
  returned: if the policy was evaluated
  type: str
block:
  description: Modules that were blocked and were not before; in check mode those that would be.
  returned: if the policy was evaluated
  type: list
  elements: str
release:
  description: Modules that are allowed again; in check mode those that would be.
  returned: if the policy was evaluated
  type: list
  elements: str
remarks:
  description: Tables of the policy that are not followed, or break something that is needed, each with C(kind) and C(message).
  returned: if the policy was evaluated
  type: list
  elements: dict
error:
  description: Name of kmodd's error, such as C(Conflict).
  returned: failure
  type: str
hint:
  description: What helps, as a command or a sentence; may be empty.
  returned: failure
  type: str
evidence:
  description: Facts about the failure that are known, such as C(file) and C(line).
  returned: failure
  type: dict
"""

from typing import TYPE_CHECKING, Any

from ..module_utils.drop_in import DropIn
from ..module_utils.session import REASON, run, snake_case

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

    from kmodd.client import Client

FOLDER = "/etc/kmodd/surface.d"
ARGUMENTS = {
    "name": {"type": "str"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "content": {"type": "str"},
    "apply": {"type": "bool", "default": True},
    "weaken": {"type": "bool", "default": False},
    "reason": REASON,
}


async def bring(client: Client, module: AnsibleModule) -> dict[str, Any]:
    """Write the file, and apply the policy."""
    from kmodd.client.surface import AttackSurface

    surface, params = AttackSurface(client), module.params
    drop_in = _file(module)
    rewritten = drop_in is not None and drop_in.before != params["content"]
    result: dict[str, Any] = {"changed": rewritten, "diff": []}
    if drop_in is not None and rewritten:
        result["diff"].append(drop_in.diff(params["content"]))
        if module.check_mode:
            return result
        await drop_in.replace(params["content"], surface.plan)
    if params["apply"]:
        options = {"weaken": params["weaken"], "dry-run": module.check_mode, "reason": params["reason"]}
        plan = snake_case(await surface.data("Apply", options=options))
    else:
        plan = snake_case(await surface.data("Plan"))
    result |= {key: plan.get(key, []) for key in ("mode", "block", "release", "remarks")}
    if params["apply"] and (plan["block"] or plan["release"]):
        result["changed"] = True
        result["diff"].append(_rules(plan))
    return result


def _file(module: AnsibleModule) -> DropIn | None:
    from kmodd.errors import InvalidArgs

    name, content, present = (module.params[key] for key in ("name", "content", "state"))
    if name is None:
        if content is not None or present == "absent":
            raise InvalidArgs("name is missing: it names the file", argument="name")
        return None
    if (content is not None) != (present == "present"):
        raise InvalidArgs("a file that is present has content, one that is absent has none", argument="content")
    return DropIn(FOLDER, name)


def _rules(plan: dict[str, Any]) -> dict[str, Any]:
    """A diff of the modules that are blocked, of which only the changes are known."""
    return {
        "before_header": plan["file"],
        "after_header": plan["file"],
        "before": "".join(f"{name}\n" for name in plan["release"]),
        "after": "".join(f"{name}\n" for name in plan["block"]),
    }


def main() -> None:
    """Run as Ansible's module."""
    run(ARGUMENTS, bring)


if __name__ == "__main__":
    main()
