"""One connection of the guest's to a port of this host, which QEMU hands over as standard input: relays it to 127.0.0.1.

``relay.py PORT``. It ends when either side does, so nothing is left when the machine is gone.
"""

import contextlib
import selectors
import socket
import sys


def main() -> None:
    near = socket.socket(fileno=0)
    with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as far, selectors.DefaultSelector() as both:
        both.register(near, selectors.EVENT_READ, far)
        both.register(far, selectors.EVENT_READ, near)
        while True:
            for key, _ in both.select():
                source, target = key.fileobj, key.data
                assert isinstance(source, socket.socket)
                data = source.recv(1 << 16)
                if not data:
                    return
                target.sendall(data)


if __name__ == "__main__":
    with contextlib.suppress(OSError):  # one side is gone, and the other learns it by the end of this
        main()
