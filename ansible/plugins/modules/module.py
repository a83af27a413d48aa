#!/usr/bin/python
# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodd.kmodd.module`: whether a kernel module is loaded, with which parameters, now and at every boot."""

from __future__ import annotations

DOCUMENTATION = r"""
module: module
short_description: Load, unload and reload kernel modules
version_added: 0.1.0
description:
  - Loads or unloads a kernel module through kmodd, sets its parameters, and makes this permanent.
  - kmodd loads dependencies and soft dependencies too, obeys C(modprobe.d), and undoes the first steps of a load when a later one
    fails.
author: kmodd maintainers (!UNKNOWN)
extends_documentation_fragment:
  - kmodd.kmodd.kmodd
  - kmodd.kmodd.kmodd.changes
options:
  name:
    description: Name of the module. C(-) and C(_) are equivalent.
    type: str
    required: true
  state:
    description:
      - C(present) loads the module if it is not loaded.
      - C(absent) unloads it if it is loaded. A module that this kernel does not have is absent.
      - C(reloaded) unloads it and loads it again, every time. If the load fails, what was loaded before is loaded again with its old
        parameters.
    type: str
    choices: [present, absent, reloaded]
    default: present
  parameters:
    description:
      - Parameters of the module. Values are strings, integers, booleans (1 and 0) or lists of these.
      - If the module is loaded with other values, those that are writable are written. For the others see C(reload).
      - If only root may read a parameter, check mode always reports it as changed; without check mode it is compared.
      - If no one can read a parameter of a loaded module and it is not writable, the task fails; C(state=reloaded) sets it.
    type: dict
  reload:
    description: Unload the module and load it again where a parameter of the loaded module has another value and is not writable.
    type: bool
    default: false
  persistent:
    description:
      - C(true) has the module loaded at every boot, in C(/etc/modules-load.d/kmodd.conf), and writes C(parameters) to
        C(/etc/modprobe.d/kmodd-options.conf).
      - C(false) removes both of kmodd's own rules for the module. Files of other programs are not changed.
      - If not set, these rules stay as they are.
    type: bool
  version:
    description:
      - Version in kmodd's store of custom modules that must be active. It must have been imported.
      - With C(state=present) and C(state=reloaded), a loaded module of another version is reloaded.
    type: str
  dependents:
    description: With C(state=absent), unload the modules that use it as well.
    type: bool
    default: false
  unused_dependencies:
    description: With C(state=absent), also unload its soft dependencies and the dependencies that are no longer used.
    type: bool
    default: false
  disconnect:
    description:
      - Also unload or reload the module when live interfaces or devices are removed with it, such as the network interface of this
        connection.
    type: bool
    default: false
  override_policy:
    description: Load the module although C(modprobe.d) blacklists it. Requires the polkit action C(org.kmodd1.override-policy).
    type: bool
    default: false
  timeout:
    description: Seconds to wait for each call into the kernel, from 1 to 600. The default is a setting of kmodd.
    type: int
seealso:
  - module: kmodd.kmodd.rule
  - module: kmodd.kmodd.desired_state
"""

EXAMPLES = r"""
- name: Have loop devices with partitions, now and at every boot
  kmodd.kmodd.module:
    name: loop
    parameters:
      max_part: 15
    persistent: true
    reload: true

- name: Unload the floppy driver, and do not load it at boot
  kmodd.kmodd.module:
    name: floppy
    state: absent
    persistent: false

- name: Show what the next task would take with it
  kmodd.kmodd.module:
    name: cfg80211
    state: absent
    dependents: true
    disconnect: true
  check_mode: true
  register: plan
"""

RETURN = r"""
modules:
  description: Modules that were inserted or removed, in order; in check mode those that would be.
  returned: success
  type: list
  elements: str
  sample: [fat, vfat]
steps:
  description: The calls into the kernel that kmodd planned, before it took them.
  returned: success
  type: list
  elements: dict
  contains:
    action:
      description: C(insert), C(remove) or C(set-parameter).
      type: str
    module:
      description: Name of the module.
      type: str
    because:
      description: Why this step, such as C(dependency of vfat).
      type: str
    parameters:
      description: As the kernel gets them.
      type: str
    consequences:
      description: What is removed with the module, such as an interface, in sentences.
      type: list
      elements: str
persistent:
  description: Whether kmodd's own file has the module loaded at boot.
  returned: success
  type: bool
error:
  description: Name of kmodd's error, such as C(InUse).
  returned: failure
  type: str
hint:
  description: What helps, as a command or a sentence; may be empty.
  returned: failure
  type: str
evidence:
  description: Facts about the failure that are known, such as C(errno), C(kernel_log), C(holders), C(users), C(file) and C(line).
  returned: failure
  type: dict
"""

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..module_utils.own_rules import OwnRules, bring_rules, read_rules
from ..module_utils.session import REASON, canonical, first_failure, planned, run, spelled

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

    from kmodd.client import Client

ARGUMENTS = {
    "name": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "absent", "reloaded"], "default": "present"},
    "parameters": {"type": "dict"},
    "reload": {"type": "bool", "default": False},
    "persistent": {"type": "bool"},
    "version": {"type": "str"},
    "dependents": {"type": "bool", "default": False},
    "unused_dependencies": {"type": "bool", "default": False},
    "disconnect": {"type": "bool", "default": False},
    "override_policy": {"type": "bool", "default": False},
    "timeout": {"type": "int"},
    "reason": REASON,
}
VERBS = {"present": "load", "absent": "unload", "reloaded": "reload"}
LIVE = "set-parameter"
OBJECT_TRIES, OBJECT_PAUSE = 50, 0.02
"""A module's object is there a moment after its load: when the kernel's event has arrived."""


class Task:
    """One task: what it is to reach, and the steps it takes."""

    def __init__(self, client: Client, module: AnsibleModule) -> None:
        self._client = client
        self._desired = module.params
        self._name = canonical(module.params["name"])
        self._state: str = module.params["state"]
        self._parameters = spelled(module.params["parameters"])
        self._check: bool = module.check_mode
        self._touched: list[str] = []
        self._steps: list[Any] = []

    async def run(self) -> dict[str, Any]:
        """Reach the state, and tell what changed."""
        from kmodd.client.configuration import Configuration

        self._refuse_contradictions()
        configuration = Configuration(self._client)
        before = await self._shown()
        # Options that stay in the file beside those of the task are written again: all of them must be known.
        exact = self._desired["persistent"] is False or bool(self._desired["persistent"] and self._parameters)
        now = await read_rules(configuration, self._name, exact=exact)
        desired = self._rules(now)
        # What a file refuses is known before a module is touched.
        reason = self._desired["reason"]
        await bring_rules(configuration, self._name, now, desired, reason=reason, dry_run=True)
        switched = await self._activate()
        if not (switched and self._check):  # what another version takes is not known before it is active
            await self._reach()
        if not self._check:
            await bring_rules(configuration, self._name, now, desired, reason=reason, dry_run=False)
        after = self._expected(before) if self._check else await self._shown()
        persistence = ({"persistent": now.autoload, "options": dict(now.options)},
                       {"persistent": desired.autoload, "options": dict(desired.options)})  # fmt: skip
        return {
            "changed": switched or bool(self._touched) or now != desired,
            "modules": self._touched,
            "steps": self._steps,
            "persistent": desired.autoload,
            "diff": {
                "before_header": f"module {self._name}",
                "after_header": f"module {self._name}",
                "before": {**before, **persistence[0]},
                "after": {**after, **persistence[1]},
            },
        }

    def _refuse_contradictions(self) -> None:
        from kmodd.errors import InvalidArgs

        if self._state != "absent":
            return
        for option, value in (("parameters", self._parameters), ("version", self._desired["version"])):
            if value:
                raise InvalidArgs(f"state absent takes no {option}", argument=option)
        if self._desired["persistent"]:
            raise InvalidArgs("state absent and persistent contradict each other", argument="persistent")

    def _rules(self, now: OwnRules) -> OwnRules:
        if self._desired["persistent"] is None:
            return now
        if not self._desired["persistent"]:
            return replace(now, autoload=False, options={})
        return replace(now, autoload=True, options={**now.options, **self._parameters})

    async def _activate(self) -> bool:
        """Make the version of the store the active one; whether it was another one."""
        from kmodd.client.store import Store

        version = self._desired["version"]
        if not version:
            return False
        store = Store(self._client)
        if any((row.name, row.version, row.active) == (self._name, version, True) for row in await store.list()):
            return False
        loaded = await store.activate(
            self._name,
            version,
            load=await self._is_loaded(),
            disconnect=self._desired["disconnect"],
            dry_run=self._check,
            reason=self._desired["reason"],
        )
        self._touched += loaded
        return True

    # --- the module itself --------------------------------------------------------------------------------------------

    async def _reach(self) -> None:
        from kmodd.errors import Conflict, NoSuchModule

        self._steps = await self._plan(VERBS[self._state], self._parameters)
        try:
            self._touched += await self._change()
        except NoSuchModule:
            if self._state != "absent":
                raise
        except Conflict:
            # The kernel ignores parameters for a loaded module.
            if self._state != "present" or not self._parameters or not await self._is_loaded():
                raise
            await self._set()

    async def _change(self) -> tuple[str, ...]:
        desired = self._desired
        shared = {"dry_run": self._check, "reason": desired["reason"]}
        shared |= {"timeout": desired["timeout"]} if desired["timeout"] is not None else {}
        if self._state == "absent":
            return await self._client.unload(
                self._name,
                dependents=desired["dependents"],
                unused_dependencies=desired["unused_dependencies"],
                disconnect=desired["disconnect"],
                **shared,
            )
        shared |= {"override_policy": True} if desired["override_policy"] else {}
        if self._state == "reloaded":
            return await self._client.reload(self._name, self._parameters, disconnect=desired["disconnect"], **shared)
        return await self._client.load(self._name, self._parameters, **shared)

    async def _set(self) -> None:
        """Give a loaded module the values that differ: written while it is live, or by a reload."""
        from kmodd.errors import ReadOnlyParameter

        rows = await planned(
            self._client, [("load", self._name, {name: value}) for name, value in self._parameters.items()]
        )
        differing = {row["operation"] for row in rows}
        values = {name: value for number, (name, value) in enumerate(self._parameters.items()) if number in differing}
        self._steps = await self._plan(LIVE, values)
        try:
            rows = await self._client.data(
                "Batch",
                [(LIVE, self._name, values)],
                options={"dry-run": self._check, "reason": self._desired["reason"]},
            )
        except ReadOnlyParameter:
            await self._refuse_unreadable(values)
            if not self._desired["reload"]:
                raise
            self._state = "reloaded"
            await self._reach()
            return
        error = first_failure(rows)
        if error is not None:
            raise error
        # A value that only root may read differs in every plan; the service compares it when it writes.
        if self._check or any(row["result"] == "changed" for row in rows):
            self._touched.append(self._name)

    async def _refuse_unreadable(self, values: dict[str, str]) -> None:
        """Refuse parameters that can neither be compared nor written: they would have the module reloaded every time."""
        from kmodd.errors import Evidence, ReadOnlyParameter

        readable = (await self._shown())["parameters"]
        for name, value in values.items():
            steps = [] if name in readable else await self._plan(LIVE, {name: value})
            if any(step.get("error") == ReadOnlyParameter.name() for step in steps):
                raise ReadOnlyParameter(
                    f"parameter {name} of {self._name} can be set only when loading, and its value cannot be read",
                    module=self._name,
                    argument=name,
                    evidence=Evidence(
                        parameter=name, hint="state: reloaded sets it, and reloads the module every time"
                    ),
                )

    async def _plan(self, verb: str, parameters: dict[str, str]) -> list[Any]:
        desired = self._desired
        return await planned(
            self._client,
            [(verb, self._name, parameters)],
            dependents=desired["dependents"],
            unused_dependencies=desired["unused_dependencies"],
            disconnect=desired["disconnect"],
            override_policy=desired["override_policy"],
        )

    # --- what a diff shows --------------------------------------------------------------------------------------------

    async def _is_loaded(self) -> bool:
        rows = await self._client.list_modules(match=self._name)
        return any(row.name == self._name for row in rows)

    async def _shown(self) -> dict[str, Any]:
        """Whether the module is loaded, and the parameters that the task names as the kernel holds them."""
        from kmodd.errors import NotLoaded

        if not await self._is_loaded():
            return {"loaded": False, "parameters": {}}
        held: dict[str, str] = {}
        for _ in range(OBJECT_TRIES):
            try:
                held = (await self._client.module_properties(self._name)).get("Parameters", {})
                break
            except NotLoaded:
                await asyncio.sleep(OBJECT_PAUSE)
        held = {name.replace("-", "_"): value for name, value in held.items()}
        return {"loaded": True, "parameters": {name: held[name] for name in self._parameters if name in held}}

    def _expected(self, before: dict[str, Any]) -> dict[str, Any]:
        """The same after the task."""
        if not self._touched:
            return before
        return {"loaded": self._state != "absent", "parameters": dict(self._parameters)}


async def bring(client: Client, module: AnsibleModule) -> dict[str, Any]:
    """Run the task."""
    return await Task(client, module).run()


def main() -> None:
    """Run as Ansible's module."""
    run(ARGUMENTS, bring)


if __name__ == "__main__":
    main()
