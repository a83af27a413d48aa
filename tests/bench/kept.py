# SPDX-License-Identifier: LGPL-2.1-or-later
"""A kept-alive connection that costs its side as little as possible: what is measured is the server."""

import selectors
import socket
import time


def request(method: str, path: str, token: str = "") -> bytes:
    """A request without a body, spelled once."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    if token:
        lines.append(f"Authorization: Bearer {token}")
    if method != "GET":
        lines.append("Content-Length: 0")
    return "\r\n".join([*lines, "", ""]).encode()


class Kept:
    """One connection, one request at a time."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=120)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._data = b""

    def send(self, data: bytes) -> None:
        """Ask."""
        self._data = b""
        self.socket.sendall(data)

    def take(self) -> bool:
        """Read what is there; the answer is whole. RuntimeError when it is no success."""
        got = self.socket.recv(1 << 20)
        self._data += got
        head, found, rest = self._data.partition(b"\r\n\r\n")
        if not found:
            if not got:
                raise RuntimeError("the server hung up")
            return False
        if b" 200 " not in head[:16]:
            raise RuntimeError(self._data.decode(errors="replace"))
        _, _, after = head.lower().partition(b"content-length: ")
        return len(rest) >= int(after.split(b"\r\n")[0])

    def ask(self, data: bytes) -> float:
        """Seconds from the request to the whole answer."""
        begin = time.perf_counter()
        self.send(data)
        while not self.take():
            continue
        return time.perf_counter() - begin

    def close(self) -> None:
        """End it."""
        self.socket.close()


def many(port: int, data: bytes, connections: int, seconds: float) -> int:
    """Answers within so many seconds to this request over several connections, each with one request under way."""
    with selectors.DefaultSelector() as selector:
        kept = [Kept(port) for _ in range(connections)]
        for one in kept:
            selector.register(one.socket, selectors.EVENT_READ, one)
            one.send(data)
        answers, until = 0, time.perf_counter() + seconds
        while time.perf_counter() < until:
            for key, _ in selector.select(1.0):
                if key.data.take():
                    answers += 1
                    key.data.send(data)
        for one in kept:
            one.close()
        return answers
