#!/usr/bin/python
# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodd.kmodd.desired_state`: a file of the desired state of kernel modules, and its application."""

from __future__ import annotations

DOCUMENTATION = r"""
module: desired_state
short_description: Describe the desired state of kernel modules, and apply it
version_added: 0.1.0
description:
  - Writes or removes a file in C(/etc/kmodd/modules.d), which describes the desired state of modules, and applies the desired state.
  - A file that kmodd refuses is put back as it was, and the error names the line.
  - The desired state of all files is applied, all of it or nothing. Without C(name), the files stay as they are.
author: kmodd maintainers (!UNKNOWN)
extends_documentation_fragment:
  - kmodd.kmodd.kmodd
  - kmodd.kmodd.kmodd.changes
options:
  name:
    description: Name of the file, without directory and C(.toml).
    type: str
  state:
    description:
      - Whether the file exists. Removing it undoes nothing - rules and modules stay until another description changes them.
    type: str
    choices: [present, absent]
    default: present
  modules:
    description:
      - The tables of the file by module, with the keys of kmodd-modules.d(5), such as C(state), C(parameters), C(options), C(blacklist),
        C(autoload), C(after) and C(when).
    type: dict
  content:
    description: The text of the file, in TOML, in place of C(modules).
    type: str
  apply:
    description: Apply the desired state. If not, kmodd applies the file at the next boot, and C(drift) returns the differences.
    type: bool
    default: true
  disconnect:
    description: Also unload and reload modules when live interfaces or devices are removed with them.
    type: bool
    default: false
seealso:
  - module: kmodd.kmodd.module
  - module: kmodd.kmodd.rule
notes:
  - In check mode, a file that would change is not checked beyond its syntax, as kmodd reads files only in their place. C(steps) are those
    of the modules that it would load and unload.
"""

EXAMPLES = r"""
- name: Describe and apply
  kmodd.kmodd.desired_state:
    name: site
    modules:
      firewire-core:
        state: absent
        blacklist: hard
        reason: no DMA from outside
      loop:
        state: loaded
        parameters:
          max_part: 15

- name: The same from a file of the control node
  kmodd.kmodd.desired_state:
    name: site
    content: "{{ lookup('ansible.builtin.file', 'modules.toml') }}"

- name: Report drift, and change nothing
  kmodd.kmodd.desired_state:
  check_mode: true
  register: desired
"""

RETURN = r"""
results:
  description: One for each change that was applied, in order; in check mode those that would be.
  returned: when the desired state was applied
  type: list
  elements: dict
  contains:
    module:
      description: Name of the module.
      type: str
    action:
      description: What was done, such as C(load), C(set-parameter) or C(blacklist-hard).
      type: str
    result:
      description: C(changed), C(unchanged), C(failed), C(rolled-back) or C(skipped).
      type: str
drift:
  description: The differences that remain; in check mode those that the files as they are have now.
  returned: always
  type: list
  elements: dict
  contains:
    module:
      description: Name of the module; empty if it is not about one module.
      type: str
    kind:
      description: C(presence), C(parameter), C(options), C(blacklist), C(autoload), C(store-version) or C(initramfs).
      type: str
    wanted:
      description: The desired state.
      type: str
    actual:
      description: The actual state.
      type: str
    hint:
      description: What resolves the difference; may be empty.
      type: str
steps:
  description: In check mode, calls into the kernel for the modules that the changed file would load and unload.
  returned: in check mode, if the file would change
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

from typing import TYPE_CHECKING, Any, Mapping

from ..module_utils.drop_in import DropIn, toml
from ..module_utils.session import REASON, canonical, failure, first_failure, planned, run, snake_case, spelled

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

    from kmodd.client import Client
    from kmodd.client.configuration import Configuration

FOLDER = "/etc/kmodd/modules.d"
ARGUMENTS = {
    "name": {"type": "str"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "modules": {"type": "dict"},
    "content": {"type": "str"},
    "apply": {"type": "bool", "default": True},
    "disconnect": {"type": "bool", "default": False},
    "reason": REASON,
}
CHANGED = "changed"


async def bring(client: Client, module: AnsibleModule) -> dict[str, Any]:
    """Write the file, and apply the desired state."""
    from kmodd.client.configuration import Configuration

    configuration = Configuration(client)
    drop_in, text = _file(module)
    rewritten = drop_in is not None and drop_in.before != text
    result: dict[str, Any] = {"changed": rewritten, "diff": []}
    if drop_in is not None and rewritten:
        result["diff"].append(drop_in.diff(text))
        if module.check_mode:
            result["steps"] = await _foreseen(client, str(drop_in.path), text)
        else:
            await drop_in.replace(text, lambda: configuration.reload(reason=module.params["reason"]))
    before = snake_case(await configuration.data("GetDrift"))
    # What a changed file would come to is not known before kmodd has read it.
    if module.params["apply"] and not (rewritten and module.check_mode):
        result["results"] = await _apply(configuration, module)
        result["changed"] |= any(row["result"] == CHANGED for row in result["results"])
    result["drift"] = before if module.check_mode else snake_case(await configuration.data("GetDrift"))
    if "results" in result and before:
        left = result["drift"]
        if module.check_mode:
            changed = {row["module"] for row in result["results"] if row["result"] == CHANGED}
            left = [row for row in before if row["module"] not in changed]
        result["diff"].append(_settled(before, left))
    return result


def _file(module: AnsibleModule) -> tuple[DropIn | None, str | None]:
    """The file that the task is about, and the text that it is to have; None where it is to be absent."""
    from kmodd.errors import InvalidArgs

    params = module.params
    described = params["modules"] is not None or params["content"] is not None
    if params["name"] is None:
        if described or params["state"] == "absent":
            raise InvalidArgs("name is missing: it names the file", argument="name")
        return None, None
    if described != (params["state"] == "present"):
        raise InvalidArgs(
            "a file that is present has modules or content, one that is absent has neither", argument="state"
        )
    drop_in = DropIn(FOLDER, params["name"])
    if params["modules"] is None:
        return drop_in, params["content"]
    wrong = [name for name, table in params["modules"].items() if not isinstance(table, Mapping)]
    if wrong:
        raise InvalidArgs(f"modules.{wrong[0]} is not a dictionary", argument="modules")
    return drop_in, f"# Written by Ansible.\n{toml(params['modules'], 'module.')}"


async def _apply(configuration: Configuration, module: AnsibleModule) -> list[dict[str, Any]]:
    rows = await configuration.data(
        "Apply",
        options={
            "dry-run": module.check_mode,
            "disconnect": module.params["disconnect"],
            "reason": module.params["reason"],
        },
    )
    error, results = first_failure(rows), snake_case(rows)
    if error is not None:
        module.fail_json(results=results, **failure(error))
    return list(results)


async def _foreseen(client: Client, path: str, text: str | None) -> list[Mapping[str, Any]]:
    """The steps for the modules that a file would load and unload; Conflict if it is not TOML."""
    from tomllib import TOMLDecodeError, loads

    from kmodd.errors import Conflict, Evidence

    try:
        tables = loads(text or "").get("module", {})
    except TOMLDecodeError as error:
        raise Conflict(f"{path}: invalid TOML ({error})", evidence=Evidence(file=path)) from error
    loaded = {str(row.name) for row in await client.list_modules()}
    operations = []
    for name, table in tables.items() if isinstance(tables, dict) else ():
        if not isinstance(table, dict) or "when" in table or "after" in table:
            continue
        if table.get("state") == "loaded" and canonical(name) not in loaded:
            tables_of_parameters = [table.get(key, {}) for key in ("options", "parameters")]
            if not all(isinstance(each, dict) for each in tables_of_parameters):
                problem = f"{path}: options and parameters of module.{name} must be tables"
                raise Conflict(problem, evidence=Evidence(file=path))
            parameters = {key: value for each in tables_of_parameters for key, value in each.items()}
            operations.append(("load", canonical(name), spelled(parameters)))
        elif table.get("state") == "absent" and canonical(name) in loaded:
            operations.append(("unload", canonical(name), {}))
    return await planned(client, operations) if operations else []


def _settled(before: list[Any], left: list[Any]) -> dict[str, Any]:
    """A diff of the drift that there was and the drift that is left."""
    rows = [{(row["module"], row["kind"], row["wanted"]): row["actual"] for row in rows} for rows in (before, left)]
    keys = [*dict.fromkeys((*rows[0], *rows[1]))]
    texts = [
        "".join(f"{name} {kind}: {each.get((name, kind, wanted), wanted)}\n" for name, kind, wanted in keys)
        for each in rows
    ]
    return {"before_header": "actual state", "after_header": "actual state", "before": texts[0], "after": texts[1]}


def main() -> None:
    """Run as Ansible's module."""
    run(ARGUMENTS, bring, mutually_exclusive=[("modules", "content")])


if __name__ == "__main__":
    main()
