# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the daemon knows about a failure, for whoever shows it to a person.

A D-Bus error is a name and a sentence; errno, the kernel's own lines, holders and users are asked for afterwards.
"""

from kmodd import errors
from kmodd.client import Client
from kmodd.errors import Evidence, KmoddError
from kmodd.model import Explanation

_NO_EVIDENCE = (
    errors.Unavailable,
    errors.InvalidArgs,
    errors.AccessDenied,
    errors.InteractiveAuthorizationRequired,
    errors.LimitsExceeded,
    errors.Failed,
)


def explicable(error: KmoddError) -> bool:
    """The daemon may know more about it: it is about a module, and not about who asks or how."""
    return bool(error.module) and not isinstance(error, _NO_EVIDENCE)


async def gather(error: KmoddError, client: Client) -> Evidence:
    """The error's evidence with what the daemon remembers. A failure to find more is no failure of its own."""
    try:
        if isinstance(error, errors.NoSuchModule):
            return await _similar(error, client)
        explanation = await client.explain(error.module)
    except KmoddError:
        return error.evidence
    return merge(error, explanation)


def merge(error: KmoddError, explanation: Explanation) -> Evidence:
    """Evidence for this error out of an explanation: the remembered failure only if it is this one."""
    own = error.evidence
    failure = explanation.failure
    # An earlier failure of the same kind is not this one; what was undone afterwards is told behind the sentence.
    same = failure is not None and failure.error == error.name() and error.message.startswith(failure.message)
    remembered = failure.evidence if failure is not None and same else Evidence()
    busy = isinstance(error, (errors.InUse, errors.NotRemovable))
    policy = explanation.policy if isinstance(error, errors.DisabledByPolicy) else ""
    return Evidence(
        errno=own.errno if own.errno is not None else remembered.errno,
        kernel_log=own.kernel_log or remembered.kernel_log,
        hint=own.hint or remembered.hint,
        holders=own.holders or (explanation.holders if busy else ()),
        users=own.users or (tuple((u.kind, u.name, u.detail) for u in explanation.users) if busy else ()),
        file=own.file,
        line=own.line,
        rule=own.rule or policy,
        symbols=own.symbols,
        parameter=own.parameter,
    )


async def _similar(error: KmoddError, client: Client) -> Evidence:
    if error.evidence.hint:
        return error.evidence
    from difflib import get_close_matches  # only for a name that was mistyped

    known = [module.name for module in await client.list_modules("all")]
    close = get_close_matches(error.module.replace("-", "_"), known, n=3, cutoff=0.7)
    return Evidence(hint=f"did you mean {' or '.join(close)}?") if close else error.evidence
