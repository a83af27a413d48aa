"""QEMU's control socket: one JSON command, one JSON answer."""

from __future__ import annotations

import json
import socket
import time
from typing import TYPE_CHECKING, Any

from tests.clock import clock

if TYPE_CHECKING:
    from pathlib import Path


class QmpError(RuntimeError):
    """QEMU refused a command, or its control socket is gone."""


class Qmp:
    """A connection to one QEMU. Events are read past: state is asked for when it is needed."""

    def __init__(self, path: Path, *, timeout: float = 20.0) -> None:
        self._socket = connect(path, timeout=timeout)
        self._stream = self._socket.makefile("rwb")
        self._read()
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        """What QEMU returns for this command; :class:`QmpError` with its words when it refuses."""
        request = {"execute": command, "arguments": arguments}
        try:
            self._stream.write(json.dumps(request).encode() + b"\n")
            self._stream.flush()
            while True:
                answer = self._read()
                if "return" in answer:
                    return answer["return"]
                if "error" in answer:
                    raise QmpError(f"{command}: {answer['error']['desc']}")
        except OSError as error:
            raise QmpError(f"{command}: {error}") from error

    def wait_for_migration(self, *, timeout: float = 120.0) -> None:
        """Until the state is written or read completely."""
        deadline = clock() + timeout
        while clock() < deadline:
            status = self.execute("query-migrate").get("status")
            if status == "completed":
                return
            if status in ("failed", "cancelled"):
                raise QmpError(f"the machine's state could not be moved: {status}")
            time.sleep(0.02)
        raise QmpError(f"the machine's state was not moved within {timeout:.0f} s")

    def close(self) -> None:
        self._stream.close()
        self._socket.close()

    def _read(self) -> dict[str, Any]:
        line = self._stream.readline()
        if not line:
            raise QmpError("QEMU ended")
        answer: dict[str, Any] = json.loads(line)
        return answer


def connect(path: Path, *, timeout: float) -> socket.socket:
    """A unix socket that QEMU may still be about to make."""
    deadline = time.monotonic() + timeout
    while True:
        client = socket.socket(socket.AF_UNIX)
        try:
            client.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            client.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return client
