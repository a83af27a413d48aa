# SPDX-License-Identifier: LGPL-2.1-or-later
"""Handles every method call: the only path from the bus to the handlers.

The dispatcher owns received descriptors: it closes those of a call that takes none before anything else, the others when
the call has been answered or its caller is gone.

For each call, in this order: find object and member, compare signatures, read the arguments within limits and the options
of the member's row, count the call against its user's quota, let the handler validate (it raises, or returns a frozen
`Call`), authorize the actions of the row and of the `Call`, run the `Call`, marshal the reply. The row comes from the XML;
a member whose row has neither an action nor `public` cannot exist. An exception becomes an error reply by the table in
`kmodd.errors`; one that is not in the table is an internal error, reported in the journal and not to the caller.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from inspect import isawaitable, iscoroutine
from typing import Any

from kmodd.dbus import message as frames
from kmodd.dbus.admission import FairQueue, Quota, Slot
from kmodd.dbus.authorizer import Authorizer, Count
from kmodd.dbus.call import (
    FULL_EVIDENCE,
    PUBLIC_EVIDENCE,
    Body,
    Call,
    Descriptor,
    Disclosure,
    Map,
    Refusal,
    StandardError,
    Target,
)
from kmodd.dbus.interface_xml import Interface, Method, split
from kmodd.dbus.marshal import decode, encode, parse_options
from kmodd.dbus.message import ReceivedMessage
from kmodd.dbus.object_tree import BoundInterface, BoundMethod, ObjectTree
from kmodd.dbus.peers import Peer, Peers
from kmodd.dbus.transport import Transport
from kmodd.errors import (
    INTERNAL,
    AccessDenied,
    Failed,
    InvalidArgs,
    KmoddError,
    LimitsExceeded,
    is_fault_of_the_machine,
    machine_fault,
)
from kmodd.model import Caller, FactsPending
from kmodd.names import ModuleName, parse_reason

_PEER = "org.freedesktop.DBus.Peer"
_HELD_MAX = 128
"""Calls kept for a connection while its identity is queried: as many as the system bus lets it have unanswered."""
_CARRYING_MAX = 128
"""Concurrent calls with descriptors, over all connections..."""
_CARRYING_EACH = 8
"""...and of one connection."""
_HELD_BYTES = 16 << 20
"""Bytes of the bodies of all calls kept so; whose they are is not known yet."""


REPLY_MAX = 16 << 20
"""Bytes of the body of one reply. The system bus hangs up on a sender of more than 32 MiB, and losing the bus ends the daemon."""
_ATTEMPTS_MAX = 64
"""Times that one call is put off until module files were read; each time there are fewer of them."""


class Dispatcher:
    """One per connection to the bus; give `on_call` to the transport."""

    def __init__(
        self,
        wire: Transport,
        tree: ObjectTree,
        interfaces: Mapping[str, BoundInterface],
        *,
        callers: Peers,
        quota: Quota,
        gate: Authorizer,
        deferred: Callable[[], AbstractContextManager[None]] = nullcontext,
        read_files: Callable[[Iterable[ModuleName], int | None], Awaitable[None]] | None = None,
        report: Callable[[str, BaseException], None],
        count: Count,
        departed: Callable[[str], None],
        disclosure: Disclosure | None = None,
    ) -> None:
        """`report` writes an internal error to the journal; `departed` gets the unique name of a caller that left the bus.

        `disclosure` makes the evidence of error replies for callers that want it; without it they carry none.
        In `deferred` a member that needs a module file which was not read raises FactsPending, and `read_files` reads it off the
        loop, for a user; a program whose members need none has neither.
        """
        self._wire = wire
        self._tree = tree
        self._interfaces = interfaces
        self._callers = callers
        self._quota = quota
        self._gate = gate
        self._deferred = deferred
        self._read_files = read_files
        self._report = report
        self._count = count
        self._departed = departed
        self._disclosure = disclosure
        self._turns = FairQueue(quota, self._serve, wire.backlog)
        self.on_drained = self._turns.resume
        """Resume; the transport calls it when it has written everything."""
        self._held: dict[Peer, list[ReceivedMessage]] = {}
        self._held_bytes = 0
        self._carrying: list[ReceivedMessage] = []
        """Calls that came with descriptors they may keep."""
        self._tasks: set[asyncio.Task[None]] = set()
        callers.on_gone = self._gone

    @property
    def pending(self) -> int:
        """Calls that have not been answered yet."""
        return self._turns.waiting + len(self._tasks) + sum(map(len, self._held.values()))

    # --- before a call's turn ---------------------------------------------------------------------------------------

    def on_call(self, frame: ReceivedMessage) -> None:
        """Take a method call from the transport."""
        if not frame.sender:
            frame.close()
            return  # the bus always says who; anything else is no bus
        if frame.files:
            self._keep_or_close(frame)
        client = self._callers.find(frame.sender)
        try:
            if client is None:
                client = self._callers.identify(frame.sender, self._identified)
                self._hold(frame, self._held.setdefault(client, []))
            elif client in self._held:
                self._hold(frame, self._held[client])
            else:
                self._turns.add(frame, client)
        except LimitsExceeded as error:
            self._fail(frame, error)

    def _keep_or_close(self, frame: ReceivedMessage) -> None:
        """Close descriptors that no row takes, or that are too many; the refusal follows later."""
        rows = [
            bound.methods[frame.member].row
            for name, bound in self._interfaces.items()
            if frame.interface in {"", name} and frame.member in bound.methods
        ]
        self._carrying = [call for call in self._carrying if call.files]
        each = sum(call.sender == frame.sender for call in self._carrying)
        wanted = any(row.descriptors == len(frame.files) and frame.signature in (row.takes, row.short) for row in rows)
        if wanted and each < _CARRYING_EACH and len(self._carrying) < _CARRYING_MAX:
            self._carrying.append(frame)
        else:
            frame.close()

    def _hold(self, frame: ReceivedMessage, held: list[ReceivedMessage]) -> None:
        if len(held) >= _HELD_MAX or self._held_bytes + len(frame.body) > _HELD_BYTES:
            raise LimitsExceeded("too many calls are waiting for a reply")
        held.append(frame)
        self._held_bytes += len(frame.body)

    def _release(self, client: Peer) -> list[ReceivedMessage]:
        held = self._held.pop(client, [])
        self._held_bytes -= sum(len(frame.body) for frame in held)
        return held

    def _identified(self, client: Peer) -> None:
        for frame in self._release(client):
            if client.gone:
                return
            if client.unknowable:
                self._fail(frame, AccessDenied("cannot determine the caller's identity"))
                continue
            try:
                self._turns.add(frame, client)
            except LimitsExceeded as error:
                self._fail(frame, error)

    def _gone(self, client: Peer) -> None:
        self._release(client)
        for task in client.tasks:
            task.cancel()
        # They are no longer read: a running call has been prepared, and waiting ones are never served.
        for frame in self._carrying:
            if frame.sender == client.sender:
                frame.close()
        self._gate.forget(client.sender)
        self._departed(client.sender)

    # --- a call's turn ----------------------------------------------------------------------------------------------

    def _serve(self, frame: ReceivedMessage, client: Peer, attempt: int = 0) -> None:
        try:
            with self._deferred() if attempt < _ATTEMPTS_MAX else nullcontext():
                self._attempt(frame, client)
        except FactsPending as pending:
            reading = self._put_off(frame, client, pending, attempt + 1)
            self._start(reading, frame, None, client, None, cancellable=True, keep=True)

    async def _put_off(self, frame: ReceivedMessage, client: Peer, pending: FactsPending, attempt: int) -> None:
        """Serve the call from its beginning once the module files it needs were read, in a thread."""
        try:
            if self._read_files is not None:
                await self._read_files(pending.names, client.uid)
        except Exception as error:  # noqa: BLE001 - see _attempt
            self._fail(frame, error)
            return
        if not client.gone:
            self._serve(frame, client, attempt)

    def _attempt(self, frame: ReceivedMessage, client: Peer) -> None:
        """Serve the call, or raise FactsPending: nothing has been done then."""
        slot: Slot | None = None
        result: Any = None
        try:
            method, target = self._resolve(frame)
            row = method.row
            arguments = _arguments(frame, method)
            reason = _reason(row, arguments)
            if not row.public:
                slot = (self._quota.file if row.descriptors else self._quota.operation)(client.uid)
            call = method.handler(target, *arguments) if method.targeted else method.handler(*arguments)
            caller = self._callers.caller(client, interactive=frame.interactive, reason=reason)
            if isinstance(call, Refusal):
                work = self._refuse(frame, call, caller, client)
            elif row.public:
                result = call.run(caller)
                if not isawaitable(result):
                    self._answer(frame, method, result)
                    return
                work = self._finish(frame, method, result, client)
            else:
                work = self._authorize(frame, method, call, caller, client)
        except FactsPending:
            if slot is not None:
                slot.release()
            raise
        except Exception as error:  # noqa: BLE001 - nothing a caller sends may stop the dispatcher: bugs are reported, and answered
            if slot is not None:
                slot.release()
            self._fail(frame, error)
            return
        cancellable = isinstance(call, Refusal) or not row.public or call.cancellable
        self._start(work, frame, result, client, slot, cancellable=cancellable)

    def _start(
        self,
        work: Any,
        frame: ReceivedMessage,
        inner: Any,
        client: Peer,
        slot: Slot | None,
        *,
        cancellable: bool,
        keep: bool = False,
    ) -> None:
        """Go on in a task; at its end the frame's descriptors are closed, unless another task is to `keep` them."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        if cancellable:
            client.tasks.add(task)
        self._turns.started(client.uid)

        def ended(_: "asyncio.Task[None]") -> None:
            self._tasks.discard(task)
            client.tasks.discard(task)
            if not keep or client.gone:
                frame.close()
            if slot is not None:
                slot.release()
            if iscoroutine(inner):
                inner.close()  # cancelled before its first step, it was never awaited
            self._turns.ended(client.uid)

        task.add_done_callback(ended)

    async def _refuse(self, frame: ReceivedMessage, refusal: Refusal, caller: Caller, client: Peer) -> None:
        try:
            caller = self._gate.speaker(await self._callers.with_origin(client, caller), refusal)
            await self._fail_with_evidence(frame, await refusal.error(caller), caller)
        except Exception as bug:  # noqa: BLE001 - see _attempt
            self._fail(frame, bug)

    async def _authorize(
        self, frame: ReceivedMessage, method: BoundMethod, call: Call, caller: Caller, client: Peer
    ) -> None:
        try:
            caller = self._gate.speaker(await self._callers.with_origin(client, caller), call)
            if call.prepare is not None:
                if method.row.descriptors:
                    # A file takes a process and memory: not for whom polkit refuses it in any case.
                    await self._gate.foresee(method.row, call, caller)
                call = await call.prepare(caller)
                frame.close()
            await self._gate.authorize(method.row, call, caller)
            if client.gone:
                return
            task = asyncio.current_task()
            if task is not None and not call.cancellable:
                # From here on the kernel may be called: that is not undone because the caller disconnected. What only waits
                # is cancelled through `departed`.
                client.tasks.discard(task)
            result = call.run(caller)
            self._answer(frame, method, await result if isawaitable(result) else result)
            # What others of this turn have to say comes afterwards: signals and records of the very same change.
            self._wire.flush()
        except Exception as error:  # noqa: BLE001 - see _attempt
            await self._fail_with_evidence(frame, error, caller)
        finally:
            if call.abandon is not None:
                call.abandon()

    async def _finish(self, frame: ReceivedMessage, method: BoundMethod, result: Any, client: Peer) -> None:
        try:
            value = await result
            if not client.gone:
                self._answer(frame, method, value)
        except Exception as error:  # noqa: BLE001 - see _attempt
            await self._fail_with_evidence(frame, error, self._callers.caller(client, interactive=False))

    # --- finding the member -----------------------------------------------------------------------------------------

    def _resolve(self, frame: ReceivedMessage) -> tuple[BoundMethod, Target]:
        node = self._tree.find(frame.path)
        if node is None:
            # The specification wants Peer answered whatever the path is.
            if frame.interface == _PEER:
                node = Target(frame.path), ()
            else:
                raise StandardError("UnknownObject", "no such object")
        target, interfaces = node
        if frame.interface:
            bound = self._interfaces.get(frame.interface)
            if bound is None or (bound.contract not in interfaces and frame.interface != _PEER):
                raise StandardError("UnknownInterface", "the object does not have this interface")
            method = bound.methods.get(frame.member)
        else:
            method = self._unambiguous(frame.member, interfaces)
        if method is None:
            raise StandardError("UnknownMethod", "the object does not have this method")
        return method, target

    def _unambiguous(self, member: str, interfaces: tuple[Interface, ...]) -> BoundMethod | None:
        """The interface header is optional; a member that only one of the object's interfaces has is meant."""
        methods = [
            method
            for interface in interfaces
            if (method := self._interfaces[interface.name].methods.get(member)) is not None
        ]
        return methods[0] if len(methods) == 1 else None

    # --- answers ----------------------------------------------------------------------------------------------------

    def _answer(self, frame: ReceivedMessage, method: BoundMethod, result: Any) -> None:
        signature = method.row.answers
        files: tuple[int, ...] = ()
        if isinstance(result, Descriptor):
            data, files = encode(signature, (0,)), (result.file,)
        elif isinstance(result, Body):
            data = result.data
        else:
            # A tuple stands for several results only where there are several: an `as` may be one too.
            results = split(signature)
            data = encode(signature, result if len(results) > 1 else (result,)) if results else b""
        if len(data) > REPLY_MAX:
            raise LimitsExceeded(f"the reply is larger than {REPLY_MAX >> 20} MiB; request less")
        if frame.wants_reply:
            message = frames.reply(self._wire.next_serial(), frame, signature, data, descriptors=len(files))
            self._wire.send(message, files)
        else:
            for file in files:
                os.close(file)

    async def _fail_with_evidence(self, frame: ReceivedMessage, error: Exception, caller: Caller) -> None:
        """Answer the error with all that this caller may see of its evidence."""
        evidence: Map | None = None
        if frame.evidence == FULL_EVIDENCE and self._disclosure is not None and isinstance(error, KmoddError):
            try:
                evidence = await self._disclosure.whole(error, caller, frame.member)
            except Exception as bug:  # noqa: BLE001 - the error itself has to be answered
                self._report("cannot send the evidence of an error", bug)
        self._fail(frame, error, evidence)

    def _fail(self, frame: ReceivedMessage, error: Exception, evidence: Map | None = None) -> None:
        """Answer the error; `known` is its evidence for this caller, where more than its own user's view was looked up."""
        frame.close()
        if isinstance(error, OSError) and is_fault_of_the_machine(error):
            error = machine_fault(error)
        if isinstance(error, StandardError):
            what, name, message = "refused", error.name, error.message
        elif isinstance(error, KmoddError) and not isinstance(error, Failed):
            what = "limited" if isinstance(error, LimitsExceeded) else "refused"
            client = self._callers.find(frame.sender) if frame.evidence != PUBLIC_EVIDENCE else None
            uid = client.uid if client is not None else None
            name, message = error.bus_name(), error.message
            if self._disclosure is not None:
                message = self._disclosure.message(error, uid)
                if frame.evidence and evidence is None:
                    evidence = self._disclosure.at_once(error, uid)
        else:
            self._report(f"{frame.interface}.{frame.member} failed", error)
            what, name, message, evidence = "failed", Failed.bus_name(), INTERNAL, None
        # Counted by kind only: a member's name is the caller's choice, and labels are kept forever.
        self._count(what, "")
        if frame.wants_reply:
            signature, body = "s", encode("s", (message,))
            if evidence is not None and len(extended := encode("sa{sv}", (message, evidence))) <= REPLY_MAX:
                signature, body = "sa{sv}", extended
            self._wire.send(frames.failure(self._wire.next_serial(), frame, name, body, signature))

    async def close(self) -> None:
        """Cancel what only waits or reads, and wait until nothing of it is left."""
        self._callers.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _arguments(frame: ReceivedMessage, method: BoundMethod) -> list[Any]:
    row = method.row
    if frame.oversized:
        raise InvalidArgs(f"a message is at most {frames.BODY_MAX // 1024} KiB")
    if frame.signature not in (row.takes, row.short):
        wanted = f"({row.takes}: {', '.join(row.arguments)})" if row.takes else "no arguments"
        raise InvalidArgs(f"{row.name} takes {wanted}")
    values = decode(frame.signature, frame.body, little=frame.little) if frame.signature else []
    if row.options is not None:
        # A call may leave them out, with the same meaning as none.
        wire = values.pop() if frame.signature == row.takes else {}
        frame.evidence = _evidence(wire)
        options = parse_options(wire, row.options)
        if row.options:  # a handler of what takes none has no argument for them
            values.append(options)
    return _with_files(frame, row, values) if row.descriptors else values


def _evidence(wire: dict[str, tuple[str, Any]]) -> str:
    """Take the option out that every member with options has."""
    type_, value = wire.pop("evidence", ("s", ""))
    if type_ != "s" or value not in ("", PUBLIC_EVIDENCE, FULL_EVIDENCE):
        raise InvalidArgs(f"the option evidence must be '{PUBLIC_EVIDENCE}' or '{FULL_EVIDENCE}'", argument="options")
    return str(value)


def _reason(row: Method, arguments: list[Any]) -> str:
    """Why the caller says it asks, for the journal; empty where the member takes none."""
    return parse_reason(arguments[-1].get("reason", "")) if row.options else ""


def _with_files(frame: ReceivedMessage, row: Method, values: list[Any]) -> list[Any]:
    """The values with descriptors in place of their numbers; they stay the frame's."""
    if len(frame.files) != row.descriptors:
        if frame.descriptors == row.descriptors:
            raise LimitsExceeded("too many calls with descriptors are waiting for a reply")
        raise InvalidArgs(f"{row.name} takes {row.descriptors} file descriptor")
    typed = list(zip(split(row.takes), values, strict=row.options != {}))
    if any(type_ == "h" and value >= len(frame.files) for type_, value in typed):
        raise InvalidArgs("the message is malformed")
    return [frame.files[value] if type_ == "h" else value for type_, value in typed]
