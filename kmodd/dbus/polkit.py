# SPDX-License-Identifier: LGPL-2.1-or-later
"""Client of polkit: any answer but a well-formed, timely yes is a no. Also the messages of authentication dialogs.

polkit takes the message from the detail `polkit.message` of the service that owns the action, in place of the policy's, and
fills in the details by name (expand_properties in polkitbackendinteractiveauthority.c; udisks does the same). A message in
the policy would have to name details that a request may lack.
"""

import asyncio
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from kmodd.dbus.transport import Transport
from kmodd.errors import AccessDenied, InteractiveAuthorizationRequired
from kmodd.model import Caller

MESSAGE = "polkit.message"
_NEEDED = "Authentication is required to "

_DEEDS = {
    "org.kmodd1.load": "load kernel modules: $(modules)",
    "org.kmodd1.unload": "unload kernel modules: $(modules)",
    "org.kmodd1.set-parameter": "change parameters of the kernel module $(module)",
    "org.kmodd1.override-policy": "load kernel modules that are disabled by configuration: $(modules)",
    "org.kmodd1.configure": "change the configuration of kernel modules: $(modules)",
    "org.kmodd1.import-module": "import or remove version $(version) of the custom kernel module $(module)",
    "org.kmodd1.activate-module": "activate or deactivate version $(version) of the custom kernel module $(module)",
}
_ACTIONS = {
    ("org.kmodd1.load", "reload"): "reload kernel modules: $(modules)",
    ("org.kmodd1.unload", "reload"): "reload kernel modules: $(modules)",
    ("org.kmodd1.load", "hold"): "load kernel modules and keep them loaded: $(modules)",
    ("org.kmodd1.load", "reset-failed"): "reset the failed operation of the kernel module $(module)",
    ("org.kmodd1.set-parameter", "batch"): "change parameters of kernel modules: $(modules)",
    ("org.kmodd1.set-parameter", "cancel"): "cancel an operation on kernel modules: $(modules)",
    ("org.kmodd1.load", "cancel"): "cancel an operation on kernel modules: $(modules)",
    ("org.kmodd1.unload", "cancel"): "cancel an operation on kernel modules: $(modules)",
    ("org.kmodd1.configure", "apply"): "bring kernel modules to the desired state: $(modules)",
    ("org.kmodd1.configure", "apply-confirm"): "keep the desired state of kernel modules that is on trial: $(modules)",
    (
        "org.kmodd1.configure",
        "apply-revert",
    ): "take back the desired state of kernel modules that is on trial: $(modules)",
    ("org.kmodd1.configure", "reload-configuration"): "read the configuration of kernel modules again",
    ("org.kmodd1.import-module", "import"): "import version $(version) of the custom kernel module $(module)",
    ("org.kmodd1.import-module", "remove"): "remove version $(version) of the custom kernel module $(module)",
    ("org.kmodd1.activate-module", "activate"): "activate version $(version) of the custom kernel module $(module)",
    (
        "org.kmodd1.activate-module",
        "deactivate",
    ): "take the active version of the custom kernel module $(module) out of use",
    ("org.kmodd1.surface", "respond"): "keep kernel modules from being loaded, in response to $(response): $(modules)",
    ("org.kmodd1.unload", "respond"): "unload kernel modules, in response to $(response): $(modules)",
    (
        "org.kmodd1.surface-allow",
        "end-response",
    ): "let kernel modules be loaded again that the response to $(response) keeps out: $(modules)",
    ("org.kmodd1.surface", "surface-apply"): "keep kernel modules from being loaded by the policy in surface.d",
    ("org.kmodd1.surface", "surface-weaken"): "keep kernel modules from being loaded by the policy in surface.d",
    ("org.kmodd1.surface", "surface-confirm"): "keep the rules about kernel modules that are on trial",
    ("org.kmodd1.surface", "surface-revert"): "take back the rules about kernel modules that are on trial",
    (
        "org.kmodd1.surface-allow",
        "surface-weaken",
    ): "let kernel modules be loaded again that the policy in surface.d no longer keeps out",
    ("org.kmodd1.lock", "surface-lock"): "disable loading and unloading of kernel modules until reboot",
    ("org.kmodd1.manage-notifications", "add-webhook"): "send notifications about kernel modules to a new webhook, "
    "$(endpoint), at $(target)",
    ("org.kmodd1.manage-notifications", "add-email"): "send notifications about kernel modules to new recipients, "
    "$(endpoint): $(target)",
    ("org.kmodd1.manage-notifications", "remove"): "remove the notification endpoint $(endpoint) ($(target))",
    ("org.kmodd1.manage-notifications", "enable"): "send notifications to the endpoint $(endpoint) ($(target)) again",
    ("org.kmodd1.manage-notifications", "disable"): "stop notifications to the endpoint $(endpoint) ($(target))",
    ("org.kmodd1.manage-notifications", "test"): "send a test to the notification endpoint $(endpoint) ($(target))",
    ("org.kmodd1.manage-notifications", "reload"): "read the configuration of notifications again",
}
_MORE = (
    ("parameters", ", with the parameters $(parameters)"),
    ("kernel", ", for kernel $(kernel)"),
    ("on-behalf-of", ", for $(on-behalf-of)"),
    ("consequences", "; this takes away $(consequences)"),
)


def message(action: str, details: Mapping[str, str]) -> str:
    """The sentence for a polkit action and its details, with polkit's `$(…)` in it; empty where the policy's says everything."""
    deed = _ACTIONS.get((action, details.get("action", ""))) or _DEEDS.get(action)
    if deed is None:
        return ""
    more = [text for name, text in _MORE if details.get(name)]
    others = details.get("modules", "")
    if "$(modules)" not in deed and " " in others:
        more.append("; this loads or unloads: $(modules)")
    return f"{_NEEDED}{deed}{''.join(more)}"


NAME = "org.freedesktop.PolicyKit1"
PATH = "/org/freedesktop/PolicyKit1/Authority"
INTERFACE = "org.freedesktop.PolicyKit1.Authority"
_ALLOW_USER_INTERACTION = 1


class Polkit:
    """polkit as the authority of the system bus.

    The subject is always the caller's unique bus name, which cannot be taken by another process; a process id could be
    (CVE-2013-4288). A check that is cancelled, or is not answered in time, is cancelled at polkit too: its prompt goes away.
    """

    def __init__(
        self,
        bus: Transport,
        *,
        timeout: float = 5.0,
        prompt_timeout: float = 120.0,
        speakers: Callable[[int | None], bool] = lambda uid: uid == 0,
    ) -> None:
        """Seconds polkit has for its answer, without and with a password prompt; which users may say for whom they ask."""
        self._bus = bus
        self._speakers = speakers
        self._timeout = timeout
        self.prompt_timeout = prompt_timeout
        """May be changed; counts for the next prompt."""
        self._serial = count(1)
        self._withdrawals: set[asyncio.Task[None]] = set()

    def may_speak_for_others(self, uid: int | None) -> bool:
        """Only those whose business it is."""
        return self._speakers(uid)

    async def check(self, caller: Caller, action: str, details: Mapping[str, str]) -> None:
        """Return only on an explicit yes. Root needs none: polkit itself says yes to it without asking its rules."""
        if caller.uid == 0:
            return
        if caller.uid is None:
            raise AccessDenied("cannot determine the caller's identity")
        cancellation = f"kmodd-{next(self._serial)}"
        timeout = self.prompt_timeout if caller.interactive else self._timeout
        answered = False
        try:
            answer = await self._bus.call(
                NAME,
                PATH,
                INTERFACE,
                "CheckAuthorization",
                "(sa{sv})sa{ss}us",
                (
                    ["system-bus-name", {"name": self._bus.variant("s", caller.sender)}],
                    action,
                    self._shown(caller, action, details),
                    _ALLOW_USER_INTERACTION if caller.interactive else 0,
                    cancellation,
                ),
                timeout=timeout,
            )
            answered = True
        except Exception as error:
            # Whatever went wrong (no polkit, an error reply, time ran out, the bus lost, a reply that cannot be read) is a no.
            raise AccessDenied("cannot check authorization with polkit") from error
        finally:
            if not answered:
                self._withdraw(cancellation)
        yes, challenge = _decision(answer)
        if yes:
            return
        if challenge:
            raise InteractiveAuthorizationRequired("interactive authentication required")
        raise AccessDenied(f"polkit does not allow this ({action})")

    @staticmethod
    def _shown(caller: Caller, action: str, details: Mapping[str, str]) -> dict[str, str]:
        """The details, with the sentence for the prompt where there may be one."""
        sentence = message(action, details) if caller.interactive else ""
        return {**details, MESSAGE: sentence} if sentence else dict(details)

    def _withdraw(self, cancellation: str) -> None:
        """Cancel a check; polkit's answer to that is ignored."""
        task = asyncio.get_running_loop().create_task(self._cancel(cancellation))
        self._withdrawals.add(task)
        task.add_done_callback(self._withdrawn)

    def _withdrawn(self, task: "asyncio.Task[None]") -> None:
        self._withdrawals.discard(task)
        if not task.cancelled():
            task.exception()  # polkit may be gone or not know the question any more: either way it is taken back

    async def _cancel(self, cancellation: str) -> None:
        await self._bus.call(
            NAME, PATH, INTERFACE, "CancelCheckAuthorization", "s", (cancellation,), timeout=self._timeout
        )


def _decision(answer: list[Any]) -> tuple[bool, bool]:
    """(is authorised, is challenge) of a reply `(bba{ss})`; anything else is no, no."""
    match answer:
        case [[bool() as yes, bool() as challenge, dict()]]:
            return yes, challenge
    return False, False
