#!/usr/bin/python3 -I
"""Runs in the virtual machine as root: does what the host asks for over a virtio-serial port.

Frames in both directions: length of the payload (u32), kind (one byte), channel (u32), payload. One channel is one
command. From the host: x start (JSON), i input (empty: end), k signal, w window size, p ping, c clock.
To the host: h hello, o output, e error output, z exit (JSON), P pong, C clock set.
Nothing here waits for a command, so one that hangs in the kernel keeps nobody else from being served.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pwd
import selectors
import signal
import struct
import subprocess
import termios
import time
from typing import Any

PORT = "/dev/virtio-ports/org.kmodd.agent"
HEADER = struct.Struct("!IBI")
# Output of commands is not read while this much waits for the host.
HIGH_WATER = 1 << 20
CHUNK = 1 << 16


class Command:
    """One running command and its three streams."""

    def __init__(self, agent: Agent, channel: int, request: dict[str, Any]) -> None:
        self.agent, self.channel = agent, channel
        self.input = bytearray()
        self.input_ended = False
        self.stdin: int | None
        self.terminal: int | None = None
        user = pwd.getpwnam(request.get("user") or "root")
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": user.pw_dir,
            "USER": user.pw_name,
            "LOGNAME": user.pw_name,
            "SHELL": user.pw_shell,
            "LANG": "C.UTF-8",
            **request.get("env", {}),
        }
        options: dict[str, Any] = {
            "cwd": request.get("cwd") or user.pw_dir,
            "env": environment,
            "start_new_session": True,
            "user": user.pw_uid,
            "group": user.pw_gid,
            "extra_groups": os.getgrouplist(user.pw_name, user.pw_gid),
        }
        window = request.get("window")
        if window:
            self.terminal, slave = os.openpty()
            self.outputs = {self.terminal: b"o"}
            self.resize(window)
            options["preexec_fn"] = lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            try:
                self.process = subprocess.Popen(request["argv"], stdin=slave, stdout=slave, stderr=slave, **options)
            except BaseException:
                os.close(self.terminal)
                raise
            finally:
                os.close(slave)
            self.stdin = os.dup(self.terminal)
        else:
            stdin, self.stdin = os.pipe()
            stdout, output = os.pipe()
            stderr, error = os.pipe()
            self.outputs = {stdout: b"o", stderr: b"e"}
            try:
                self.process = subprocess.Popen(request["argv"], stdin=stdin, stdout=output, stderr=error, **options)
            except BaseException:
                for descriptor in (self.stdin, stdout, stderr):
                    os.close(descriptor)
                raise
            finally:
                for descriptor in (stdin, output, error):
                    os.close(descriptor)
        for descriptor in (self.stdin, *self.outputs):
            os.set_blocking(descriptor, False)

    def resize(self, window: list[int]) -> None:
        if self.terminal is not None:
            fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", *window, 0, 0))

    def kill(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def feed(self) -> None:
        """Write waiting input; close the stream after its end."""
        if self.stdin is None:
            self.input.clear()
            return
        while self.input:
            try:
                del self.input[: os.write(self.stdin, self.input[:CHUNK])]
            except BlockingIOError:
                return
            except OSError:  # the command closed its input, or the terminal is gone
                self.input.clear()
                self.input_ended = True
        if self.input_ended:
            os.close(self.stdin)
            self.stdin = None

    def read(self, descriptor: int) -> bool:
        """Send what the stream holds now; False at its end."""
        try:
            data = os.read(descriptor, CHUNK)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno != errno.EIO:  # EIO: the terminal's other side is closed
                raise
            data = b""
        if data:
            self.agent.send(self.outputs[descriptor], self.channel, data)
            return True
        self.outputs.pop(descriptor)
        os.close(descriptor)
        return False

    def finish(self) -> None:
        """The process ended: send what is left in its streams, without waiting for others that hold them."""
        for descriptor in list(self.outputs):
            while self.read(descriptor):
                if not _readable(descriptor):
                    self.outputs.pop(descriptor)
                    os.close(descriptor)
                    break
        if self.stdin is not None:
            os.close(self.stdin)
        self.agent.send(b"z", self.channel, json.dumps({"code": self.process.returncode}).encode())


def _readable(descriptor: int) -> bool:
    with selectors.PollSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        return bool(selector.select(0))


class Agent:
    """The loop: one port, many commands."""

    def __init__(self) -> None:
        self.port = os.open(PORT, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self.received = bytearray()
        self.sending = bytearray()
        self.commands: dict[int, Command] = {}
        self.wakeup, writer = os.pipe()
        for descriptor in (self.wakeup, writer):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(writer)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def send(self, kind: bytes, channel: int, payload: bytes = b"") -> None:
        self.sending += HEADER.pack(len(payload), kind[0], channel) + payload

    def run(self) -> None:
        self.send(b"h", 0)
        connected = True
        while True:
            selector = selectors.PollSelector()
            selector.register(self.wakeup, selectors.EVENT_READ)
            if connected:
                selector.register(self.port, selectors.EVENT_READ | (selectors.EVENT_WRITE if self.sending else 0))
            for command in self.commands.values():
                if command.input and command.stdin is not None:
                    selector.register(command.stdin, selectors.EVENT_WRITE, command)
                if len(self.sending) < HIGH_WATER:
                    for descriptor in command.outputs:
                        selector.register(descriptor, selectors.EVENT_READ, command)
            ready = selector.select(None if connected else 0.1)
            connected = True
            for key, events in ready:
                if key.fd == self.wakeup:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self.wakeup, 4096)
                elif key.fd == self.port:
                    connected = self.receive() if events & selectors.EVENT_READ else True
                elif events & selectors.EVENT_WRITE:
                    key.data.feed()
                elif key.fd in key.data.outputs:
                    key.data.read(key.fd)
            self.reap()
            self.flush()

    def receive(self) -> bool:
        """Take in what came; False while no host holds the other end."""
        try:
            data = os.read(self.port, CHUNK)
        except BlockingIOError:
            return True
        if not data:
            return False
        self.received += data
        while len(self.received) >= HEADER.size:
            length, kind, channel = HEADER.unpack_from(self.received)
            if len(self.received) < HEADER.size + length:
                break
            payload = bytes(self.received[HEADER.size : HEADER.size + length])
            del self.received[: HEADER.size + length]
            self.handle(bytes([kind]), channel, payload)
        return True

    def flush(self) -> None:
        while self.sending:
            try:
                del self.sending[: os.write(self.port, self.sending[:CHUNK])]
            except BlockingIOError:
                return
            except OSError:  # no host at the other end: what it asked for is of no use to the next one
                self.sending.clear()

    def handle(self, kind: bytes, channel: int, payload: bytes) -> None:
        if kind == b"x":
            self.start(channel, json.loads(payload))
        elif kind == b"p":
            self.send(b"P", channel)
        elif kind == b"c":
            self.set_clock(json.loads(payload))
            self.send(b"C", channel)
        elif channel in self.commands:
            command = self.commands[channel]
            if kind == b"i":
                command.input += payload
                command.input_ended = command.input_ended or not payload
                command.feed()
            elif kind == b"k":
                command.kill(int(payload))
            elif kind == b"w":
                command.resize(json.loads(payload))

    def start(self, channel: int, request: dict[str, Any]) -> None:
        try:
            self.commands[channel] = Command(self, channel, request)
        except (OSError, KeyError, subprocess.SubprocessError) as error:
            answer = {"code": 127, "error": f"{type(error).__name__}: {error}"}
            self.send(b"z", channel, json.dumps(answer).encode())

    def set_clock(self, request: dict[str, Any]) -> None:
        """After a restored snapshot: the host's time, and random bytes no other restored machine has."""
        time.clock_settime(time.CLOCK_REALTIME, request["time"])
        pool = os.open("/dev/urandom", os.O_WRONLY)
        try:
            os.write(pool, bytes.fromhex(request["seed"]))
        finally:
            os.close(pool)

    def reap(self) -> None:
        for channel, command in list(self.commands.items()):
            if command.process.poll() is not None:
                command.finish()
                del self.commands[channel]


if __name__ == "__main__":
    Agent().run()
