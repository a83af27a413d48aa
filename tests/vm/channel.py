"""The host's end of the agent's port: commands started in the guest, any number at once."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.clock import clock
from tests.vm.qemu import GuestDeadError

_HEADER = struct.Struct("!IBI")
# Seconds without a sign of life, after which the guest is asked for one, and after which it is dead.
_QUIET, _DEAD = 5.0, 60.0
# Seconds a killed command gets to end; one that hangs in the kernel never does.
_GRACE = 3.0


# Called with "o" or "e" and each piece of output, instead of collecting it.
OnOutput = Callable[[str, bytes], None]


@dataclass(frozen=True)
class Result:
    """How a command in the guest ended. ``code`` is negative for a signal, 127 when it could not be started."""

    argv: tuple[str, ...]
    code: int
    out: bytes
    err: bytes

    @property
    def stdout(self) -> str:
        return self.out.decode(errors="replace")

    @property
    def stderr(self) -> str:
        return self.err.decode(errors="replace")

    def check(self) -> Result:
        """This result; :class:`CommandError` when the command failed."""
        if self.code:
            raise CommandError(self)
        return self


class CommandError(AssertionError):
    """A command that had to succeed did not."""

    def __init__(self, result: Result) -> None:
        super().__init__(f"{' '.join(result.argv)!r} ended with {result.code}\n{result.stdout}{result.stderr}")
        self.result = result


class CommandTimeoutError(TimeoutError):
    """A command took too long. ``killed`` is false when it ignored the kill: it hangs in the kernel."""

    def __init__(self, argv: tuple[str, ...], seconds: float, *, killed: bool, out: bytes, err: bytes) -> None:
        hangs = "" if killed else ", and it cannot be killed"
        text = (out + err).decode(errors="replace")
        super().__init__(f"{' '.join(argv)!r} took longer than {seconds:.0f} s{hangs}\n{text}")
        self.killed, self.out, self.err = killed, out, err


class Command:
    """A command under way in the guest."""

    def __init__(self, channel: Channel, number: int, argv: tuple[str, ...], on_output: OnOutput | None) -> None:
        self._channel, self._number, self.argv = channel, number, argv
        self.out, self.err = bytearray(), bytearray()
        self.code: int | None = None
        self.on_output = on_output

    def write(self, data: bytes) -> None:
        """Give it input."""
        for start in range(0, len(data), 1 << 16):
            self._channel.send(b"i", self._number, data[start : start + (1 << 16)])

    def end_input(self) -> None:
        self._channel.send(b"i", self._number)

    def kill(self, number: int = 9) -> None:
        """Send a signal to it and to all it started."""
        self._channel.send(b"k", self._number, str(number).encode())

    def resize(self, rows: int, columns: int) -> None:
        self._channel.send(b"w", self._number, json.dumps([rows, columns]).encode())

    def wait(self, timeout: float = 60.0) -> Result:
        """Its result; after ``timeout`` seconds it is killed and :class:`CommandTimeoutError` raised."""
        if not self._channel.wait_until(lambda: self.code is not None, timeout):
            self.kill()
            killed = self._channel.wait_until(lambda: self.code is not None, _GRACE)
            raise CommandTimeoutError(self.argv, timeout, killed=killed, out=bytes(self.out), err=bytes(self.err))
        assert self.code is not None
        return Result(self.argv, self.code, bytes(self.out), bytes(self.err))

    def wait_for_output(self, text: str, timeout: float = 30.0) -> str:
        """Standard output so far, as soon as it contains ``text``."""
        needle = text.encode()
        self._channel.wait_until(lambda: needle in self.out or self.code is not None, timeout)
        if needle not in self.out:
            said = (self.out + self.err).decode(errors="replace")
            raise TimeoutError(f"{' '.join(self.argv)!r} did not say {text!r}:\n{said}")
        return self.out.decode(errors="replace")


class Channel:
    """The connection. One thread reads; every wait ends when the guest is dead."""

    def __init__(self, connection: socket.socket, alive: Callable[[], str | None], console: Callable[[], str]) -> None:
        self._socket = connection
        # Answers why the machine is dead as far as the host knows, or None.
        self._alive = alive
        # Answers what to show with a death nobody explains.
        self._console = console
        self._commands: dict[int, Command] = {}
        self._next = 1
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._heard = clock()
        self._asked = 0.0
        self._greetings = 0
        self._answers = 0
        self._clocks = 0
        self._closed = False
        self._reader = threading.Thread(target=self._read, name="vm-agent", daemon=True)
        self._reader.start()

    def start(self, argv: tuple[str, ...], *, on_output: OnOutput | None = None, **request: Any) -> Command:
        """Start a command; see ``guest/agent`` for what a request may hold."""
        with self._changed:
            number = self._next
            self._next += 1
            command = self._commands[number] = Command(self, number, argv, on_output)
        self.send(b"x", number, json.dumps({"argv": argv, **request}).encode())
        return command

    def ping(self, timeout: float = 20.0) -> bool:
        """Whether the agent answers within the time."""
        before = self._answers
        self.send(b"p", 0)
        return self.wait_until(lambda: self._answers > before, timeout)

    def greeted(self, timeout: float, *, times: int = 1) -> bool:
        """Wait until the agent has started (again)."""
        return self.wait_until(lambda: self._greetings >= times, timeout, silence=timeout)

    @property
    def greetings(self) -> int:
        """How often an agent has started at the other end."""
        return self._greetings

    def set_clock(self, seconds: float, seed: bytes) -> bool:
        before = self._clocks
        self.send(b"c", 0, json.dumps({"time": seconds, "seed": seed.hex()}).encode())
        return self.wait_until(lambda: self._clocks > before, 30.0)

    def send(self, kind: bytes, number: int, payload: bytes = b"") -> None:
        try:
            with self._sending:
                self._socket.sendall(_HEADER.pack(len(payload), kind[0], number) + payload)
        except OSError as error:
            raise GuestDeadError(self._alive() or f"the agent's port is closed: {error}") from error

    def wait_until(self, condition: Callable[[], bool], timeout: float, *, silence: float = _DEAD) -> bool:
        """Whether the condition came true in time; :class:`GuestDeadError` when the guest died meanwhile."""
        deadline = clock() + timeout
        self._heard = max(self._heard, clock() - _QUIET)
        with self._changed:
            while not condition():
                now = clock()
                if now >= deadline:
                    return False
                reason = self._alive()
                if self._closed and not reason:
                    reason = f"the agent's port is closed\n{self._console()}"
                if not reason and now - self._heard > silence:
                    reason = f"the agent has not answered for {silence:.0f} s\n{self._console()}"
                if reason:
                    raise GuestDeadError(reason)
                if now - self._heard > _QUIET and now - self._asked > _QUIET:
                    self._asked = now
                    self.send(b"p", 0)
                self._changed.wait(min(1.0, deadline - now))
        return True

    def abandon_commands(self) -> None:
        """The guest starts anew: whatever ran before has ended with it."""
        with self._changed:
            for command in self._commands.values():
                command.code = -9
            self._commands.clear()
            self._changed.notify_all()

    def close(self) -> None:
        self._closed = True
        with contextlib.suppress(OSError):  # QEMU was first
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join(5)
        self._socket.close()

    def _read(self) -> None:
        buffer = bytearray()
        while True:
            try:
                data = self._socket.recv(1 << 18)
            except OSError:
                data = b""
            with self._changed:
                if not data:
                    self._closed = True
                    self._changed.notify_all()
                    return
                self._heard = clock()
                buffer += data
                while len(buffer) >= _HEADER.size:
                    length, kind, number = _HEADER.unpack_from(buffer)
                    end = _HEADER.size + length
                    if len(buffer) < end:
                        break
                    self._take(chr(kind), number, bytes(buffer[_HEADER.size : end]))
                    del buffer[:end]
                self._changed.notify_all()

    def _take(self, kind: str, number: int, payload: bytes) -> None:
        if kind == "h":
            self._greetings += 1
        elif kind == "P":
            self._answers += 1
        elif kind == "C":
            self._clocks += 1
        command = self._commands.get(number)
        if command is None:
            return
        if kind in "oe":
            if command.on_output:
                command.on_output(kind, payload)
            elif kind == "o":
                command.out += payload
            else:
                command.err += payload
        elif kind == "z":
            answer = json.loads(payload)
            command.err += answer.get("error", "").encode()
            command.code = answer["code"]
            del self._commands[number]
