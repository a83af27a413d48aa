# SPDX-License-Identifier: LGPL-2.1-or-later
"""Answers every method call: the one way from the bus to the code.

Descriptors belong to the dispatcher: those of a call whose row takes none are closed before anything else, the others when
the call has been answered or its caller is gone.

For each call, in this order: find object and member, compare signatures, read the arguments within limits, count it against
its user's quota, let the member's handler validate (it raises, or answers a frozen `Call`), ask the authority for the
actions in the member's row and in the `Call`, run the `Call`, marshal the answer. The row comes from the XML; a member
whose row neither names an action nor says `public` cannot exist. Whatever is raised on the way becomes an error reply by the
table in `kmodd.errors`; what is not in the table is our bug, and goes to the journal and not to the caller.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from inspect import isawaitable, iscoroutine
from typing import Any, Protocol

from kmodd.bus import frame as frames
from kmodd.bus.binding import BoundInterface, BoundMethod
from kmodd.bus.call import Body, Call, Refusal, StandardError, Target
from kmodd.bus.callers import Callers, Client
from kmodd.bus.contract import Interface, Method
from kmodd.bus.decoder import decode
from kmodd.bus.encoder import encode
from kmodd.bus.frame import Frame
from kmodd.bus.gate import Count, Gate
from kmodd.bus.quota import Quota, Slot
from kmodd.bus.signature import split
from kmodd.bus.tree import Tree
from kmodd.bus.turns import Turns
from kmodd.errors import INTERNAL, Failed, InvalidArgs, KmoddError, LimitsExceeded
from kmodd.model import Caller

_PEER = "org.freedesktop.DBus.Peer"
_HELD_MAX = 128
"""Calls kept for a connection while the bus is asked who it is: as many as the system bus lets it have unanswered."""
_CARRYING_MAX = 128
"""Calls with descriptors at once, over all connections..."""
_CARRYING_EACH = 8
"""...and of one connection."""
_HELD_BYTES = 16 << 20
"""Bytes of the bodies of all calls kept so; whose they are is not known yet."""


class Wire(Protocol):
    """What is needed of the transport."""

    def next_serial(self) -> int:
        """A serial for a message of ours."""

    @property
    def backlog(self) -> int:
        """Bytes waiting to be written."""

    def send(self, data: bytes) -> None:
        """Queue a marshalled message."""

    def flush(self) -> None:
        """Write what is queued now."""


class Dispatcher:
    """One per connection to the bus; give `on_call` to the transport."""

    def __init__(
        self,
        wire: Wire,
        tree: Tree,
        interfaces: Mapping[str, BoundInterface],
        *,
        callers: Callers,
        quota: Quota,
        gate: Gate,
        report: Callable[[str, BaseException], None],
        count: Count,
        departed: Callable[[str], None],
    ) -> None:
        """`report` writes a bug to the journal; `departed` is told the unique name of a caller that left the bus."""
        self._wire = wire
        self._tree = tree
        self._interfaces = interfaces
        self._callers = callers
        self._quota = quota
        self._gate = gate
        self._report = report
        self._count = count
        self._departed = departed
        self._turns = Turns(quota, self._serve, lambda: wire.backlog)
        self._held: dict[Client, list[Frame]] = {}
        self._held_bytes = 0
        self._carrying: list[Frame] = []
        """Calls that came with descriptors they may keep."""
        self._tasks: set[asyncio.Task[None]] = set()
        callers.on_gone = self._gone

    @property
    def pending(self) -> int:
        """Calls that have not been answered yet."""
        return self._turns.waiting + len(self._tasks) + sum(map(len, self._held.values()))

    # --- before a call's turn ---------------------------------------------------------------------------------------

    def on_call(self, frame: Frame) -> None:
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

    def _keep_or_close(self, frame: Frame) -> None:
        """Close descriptors that no row asks for, or that are too many; what is then refused is told later."""
        rows = [
            bound.methods[frame.member].row
            for name, bound in self._interfaces.items()
            if frame.interface in {"", name} and frame.member in bound.methods
        ]
        self._carrying = [one for one in self._carrying if one.files]
        each = sum(one.sender == frame.sender for one in self._carrying)
        wanted = any(row.descriptors == len(frame.files) and row.takes == frame.signature for row in rows)
        if wanted and each < _CARRYING_EACH and len(self._carrying) < _CARRYING_MAX:
            self._carrying.append(frame)
        else:
            frame.close()

    def _hold(self, frame: Frame, held: list[Frame]) -> None:
        if len(held) >= _HELD_MAX or self._held_bytes + len(frame.body) > _HELD_BYTES:
            raise LimitsExceeded("too many calls are waiting for an answer")
        held.append(frame)
        self._held_bytes += len(frame.body)

    def _release(self, client: Client) -> list[Frame]:
        held = self._held.pop(client, [])
        self._held_bytes -= sum(len(frame.body) for frame in held)
        return held

    def on_drained(self) -> None:
        """Go on: the transport has written everything."""
        self._turns.resume()

    def _identified(self, client: Client) -> None:
        for frame in self._release(client):
            if client.gone:
                return
            try:
                self._turns.add(frame, client)
            except LimitsExceeded as error:
                self._fail(frame, error)

    def _gone(self, client: Client) -> None:
        self._release(client)
        for task in client.tasks:
            task.cancel()
        # Nobody reads them any more: a call that goes on has been prepared, and waiting ones are never served.
        for frame in self._carrying:
            if frame.sender == client.sender:
                frame.close()
        self._gate.forget(client.sender)
        self._departed(client.sender)

    # --- a call's turn ----------------------------------------------------------------------------------------------

    def _serve(self, frame: Frame, client: Client) -> None:
        slot: Slot | None = None
        result: Any = None
        try:
            method, target = self._resolve(frame)
            row = method.row
            arguments = _arguments(frame, method)
            if not row.public:
                slot = (self._quota.file if row.descriptors else self._quota.operation)(client.uid)
            call = method.handler(target, *arguments) if method.targeted else method.handler(*arguments)
            caller = self._callers.caller(client, interactive=frame.interactive, audited=not row.public)
            if isinstance(call, Refusal):
                result = call.error(self._gate.speaker(caller, call))
                work = self._refuse(frame, result)
            elif row.public:
                result = call.run(caller)
                if not isawaitable(result):
                    self._answer(frame, method, result)
                    return
                work = self._finish(frame, method, result, client)
            else:
                work = self._authorize(frame, method, call, caller, client)
        except Exception as error:  # noqa: BLE001 - nothing a caller sends may stop the dispatcher: bugs are reported, and answered
            if slot is not None:
                slot.release()
            self._fail(frame, error)
            return
        cancellable = isinstance(call, Refusal) or not row.public or call.cancellable
        self._start(work, frame, result, client, slot, cancellable=cancellable)

    def _start(
        self, work: Any, frame: Frame, inner: Any, client: Client, slot: Slot | None, *, cancellable: bool
    ) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        if cancellable:
            client.tasks.add(task)
        self._turns.started(client.uid)

        def ended(_: "asyncio.Task[None]") -> None:
            self._tasks.discard(task)
            client.tasks.discard(task)
            frame.close()
            if slot is not None:
                slot.release()
            if iscoroutine(inner):
                inner.close()  # cancelled before its first step, it was never awaited
            self._turns.ended(client.uid)

        task.add_done_callback(ended)

    async def _refuse(self, frame: Frame, error: Awaitable[Exception]) -> None:
        try:
            self._fail(frame, await error)
        except Exception as bug:  # noqa: BLE001 - see _serve
            self._fail(frame, bug)

    async def _authorize(self, frame: Frame, method: BoundMethod, call: Call, caller: Caller, client: Client) -> None:
        caller = self._gate.speaker(caller, call)
        try:
            if call.prepare is not None:
                call = await call.prepare(caller)
                frame.close()
            await self._gate.pass_through(method.row, call, caller)
            if client.gone:
                return
            task = asyncio.current_task()
            if task is not None and not call.cancellable:
                # From here on the kernel may be called: that is not taken back because somebody hung up. What only waits
                # is cancelled through `departed`.
                client.tasks.discard(task)
            result = call.run(caller)
            self._answer(frame, method, await result if isawaitable(result) else result)
            # What others of this turn have to say comes afterwards: signals and records of the very same change.
            self._wire.flush()
        except Exception as error:  # noqa: BLE001 - see _serve
            self._fail(frame, error)
        finally:
            call.abandon()

    async def _finish(self, frame: Frame, method: BoundMethod, result: Any, client: Client) -> None:
        try:
            value = await result
            if not client.gone:
                self._answer(frame, method, value)
        except Exception as error:  # noqa: BLE001 - see _serve
            self._fail(frame, error)

    # --- finding the member -----------------------------------------------------------------------------------------

    def _resolve(self, frame: Frame) -> tuple[BoundMethod, Target]:
        found = self._tree.find(frame.path)
        if found is None:
            # The specification wants Peer answered whatever the path is.
            if frame.interface == _PEER:
                found = Target(frame.path), ()
            else:
                raise StandardError("UnknownObject", "there is no such object")
        target, interfaces = found
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
        found = [method for one in interfaces if (method := self._interfaces[one.name].methods.get(member)) is not None]
        return found[0] if len(found) == 1 else None

    # --- answers ----------------------------------------------------------------------------------------------------

    def _answer(self, frame: Frame, method: BoundMethod, result: Any) -> None:
        signature = method.row.answers
        if isinstance(result, Body):
            data = result.data
        else:
            # A tuple stands for several results only where there are several: an `as` may be one too.
            results = split(signature)
            data = encode(signature, result if len(results) > 1 else (result,)) if results else b""
        if frame.wants_reply:
            self._wire.send(frames.reply(self._wire.next_serial(), frame, signature, data))

    def _fail(self, frame: Frame, error: Exception) -> None:
        frame.close()
        if isinstance(error, StandardError):
            what, name, message = "refused", error.name, error.message
        elif isinstance(error, KmoddError) and not isinstance(error, Failed):
            what = "limited" if isinstance(error, LimitsExceeded) else "refused"
            name, message = error.bus_name(), error.message
        else:
            self._report(f"{frame.interface}.{frame.member} failed", error)
            what, name, message = "failed", Failed.bus_name(), INTERNAL
        # Counted by kind alone: a member's name is the caller's choice, and labels are kept for ever.
        self._count(what, "")
        if frame.wants_reply:
            self._wire.send(frames.failure(self._wire.next_serial(), frame, name, encode("s", (message,))))

    async def close(self) -> None:
        """Cancel what only waits or reads, and wait until nothing of it is left."""
        self._callers.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _arguments(frame: Frame, method: BoundMethod) -> list[Any]:
    row = method.row
    if frame.oversized:
        raise InvalidArgs(f"a message is at most {frames.BODY_MAX // 1024} KiB")
    if frame.signature != row.takes:
        wanted = f"({row.takes}: {', '.join(row.arguments)})" if row.takes else "no arguments"
        raise InvalidArgs(f"{row.name} takes {wanted}")
    values = decode(row.takes, frame.body, little=frame.little) if row.takes else []
    return _with_files(frame, row, values) if row.descriptors else values


def _with_files(frame: Frame, row: Method, values: list[Any]) -> list[Any]:
    """The values with descriptors in place of their numbers; they stay the frame's."""
    if len(frame.files) != row.descriptors:
        if frame.descriptors == row.descriptors:
            raise LimitsExceeded("too many calls with descriptors are waiting for an answer")
        raise InvalidArgs(f"{row.name} takes {row.descriptors} file descriptor")
    typed = list(zip(split(row.takes), values, strict=True))
    if any(type_ == "h" and value >= len(frame.files) for type_, value in typed):
        raise InvalidArgs("the message is malformed")
    return [frame.files[value] if type_ == "h" else value for type_, value in typed]
