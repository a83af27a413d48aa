# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs a task on the managed node: finds kmodd's Python library, connects, and returns a result or kmodd's error."""

from __future__ import annotations

import asyncio
import sys
import traceback
from typing import TYPE_CHECKING, Any, Awaitable, Callable, Mapping, Sequence

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

if TYPE_CHECKING:
    from kmodd.client import Client
    from kmodd.errors import KmoddError

LIBRARIES = ("/usr/lib/kmodd", "/usr/local/lib/kmodd")
"""Where the library is when no package has put it among Python's: beside the daemon."""
REASON = {"type": "str", "default": "set by Ansible"}

Values = Mapping[str, Any]
Work = Callable[["Client", AnsibleModule], Awaitable["dict[str, Any]"]]


def run(arguments: Values, work: Work, **rules: Any) -> None:
    """Run a task, and end the process with its result or with an error."""
    module = AnsibleModule(argument_spec=arguments, supports_check_mode=True, **rules)
    try:
        _find_library()
    except (ImportError, SyntaxError) as error:  # SyntaxError: this Python is older than the library
        module.fail_json(
            msg=missing_required_lib("kmodd", reason=f"to reach the daemon ({error})"),
            error="Unavailable",
            hint="install python3-kmodd on the node, and set ansible_python_interpreter to its /usr/bin/python3",
            exception=traceback.format_exc(),
        )
    from kmodd.errors import KmoddError

    try:
        result = asyncio.run(_connected(module, work))
    except KmoddError as error:
        module.fail_json(**failure(error))
    module.exit_json(**result)


def _find_library() -> None:
    """Import what every task needs; a library of Python's own folders goes before one beside the daemon."""
    sys.path.extend(folder for folder in LIBRARIES if folder not in sys.path)
    import kmodd.client  # noqa: F401 - imported to see whether it can be


async def _connected(module: AnsibleModule, work: Work) -> dict[str, Any]:
    from kmodd.client import Client

    async with await Client.connect() as client:
        return await work(client, module)


# --- errors ---------------------------------------------------------------------------------------------------------


def failure(error: KmoddError) -> dict[str, Any]:
    """Make the values of a failed task: kmodd's sentence, the error's name, what helps, and the evidence."""
    from kmodd.client.replies import hint_for

    return {
        "msg": error.message,
        "error": error.name(),
        "hint": hint_for(error, error.module),
        "evidence": _evidence(error),
    }


def _evidence(error: KmoddError) -> dict[str, Any]:
    from kmodd.client.replies import about_user

    evidence = error.evidence
    values = {
        "module": error.module,
        "argument": error.argument,
        "errno": evidence.errno,
        "kernel_log": list(evidence.kernel_log),
        "holders": list(evidence.holders),
        "users": [about_user(user) for user in evidence.users],
        "file": evidence.file,
        "line": evidence.line,
        "rule": evidence.rule,
        "consequences": list(evidence.goes),
        "symbols": list(evidence.symbols),
        "parameter": evidence.parameter,
        "touched": list(error.touched),
    }
    return {name: value for name, value in values.items() if value}


def first_failure(rows: Sequence[Values]) -> KmoddError | None:
    """Make the error of the first row of `Apply` or `Batch` that failed; None when none did."""
    from kmodd.client.replies import operation_result

    errors = (operation_result(row).error for row in rows)
    return next((error for error in errors if error is not None), None)


# --- values ---------------------------------------------------------------------------------------------------------


def canonical(name: str) -> str:
    """Spell a module's name as the kernel does; an alias, which has a colon, stays as it is."""
    return name if ":" in name else name.replace("-", "_")


def spelled(parameters: Values | None) -> dict[str, str]:
    """Make the kernel's spelling of parameters: true and false are 1 and 0, lists are separated by commas."""
    return {name.replace("-", "_"): _spelled(name, value) for name, value in (parameters or {}).items()}


def _spelled(name: str, value: object) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, (str, int)):
        return str(value)
    if isinstance(value, list):
        return ",".join(_spelled(name, item) for item in value)
    from kmodd.errors import InvalidArgs

    raise InvalidArgs(f"parameter {name} must be a string, an integer, a boolean or a list of these", argument=name)


def snake_case(value: Any) -> Any:
    """Make the keys of kmodd's rows those of Ansible: `kernel-log` becomes `kernel_log`."""
    if isinstance(value, Mapping):
        return {str(key).replace("-", "_"): snake_case(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [snake_case(item) for item in value]
    return value


async def planned(client: Client, operations: Sequence[tuple[str, str, Values]], **options: bool) -> list[Values]:
    """The steps of `Plan`, with Ansible's keys; empty when nothing would be done."""
    chosen = {name: value for name, value in options.items() if value}
    rows: list[Values] = snake_case(await client.data("Plan", operations, options=chosen))
    return rows
