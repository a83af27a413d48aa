# SPDX-License-Identifier: LGPL-2.1-or-later
"""A worker whose system calls are scripted by their argument; run as a program in place of the real one.

The file of an insertion (or the name of a removal) is a script of steps joined by `,`:
`errno:N` answers N, `sleep:SECONDS` sleeps first, `kill` is SIGKILL in the call, `oops` closes the socket and lives on,
`release` and `digest` answer the length of what came with the order, `data:TEXT` adds a text to the answer,
`fds` answers the number of open descriptors, `env` the number of environment variables, `length` that of the arguments.
"""

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from kmodd.kernel.worker import worker


def run(script: bytes, arguments: bytes = b"", release: bytes = b"", digest: bytes = b"") -> tuple[int, bytes]:
    """Do the steps; the last one that answers wins."""
    answer, data = 0, b""
    for step in script.decode().split(","):
        verb, _, value = step.partition(":")
        match verb:
            case "errno":
                answer = int(value)
            case "sleep":
                time.sleep(float(value))
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "oops":
                os.close(worker.SOCKET)
                time.sleep(60)
            case "fds":
                answer = len(list(Path("/proc/self/fd").iterdir())) - 1
            case "env":
                answer = len(os.environ)
            case "length":
                answer = len(arguments)
            case "release":
                answer = len(release)
            case "digest":
                answer = len(digest)
            case "data":
                data = value.encode()
            case "raise":
                raise OSError(int(value), "scripted")
            case "memory":
                raise MemoryError
    return answer, data


if __name__ == "__main__":
    worker.isolate()
    worker.SystemCalls().leave_alone()
    worker.serve(
        {
            b"insert": (lambda release, file, digest, arguments: run(file, arguments, release, digest), 4),
            b"remove": (run, 1),
            b"read-parameters": (lambda module, *_: run(module), -2),
            b"write-parameter": (lambda module, name, value: run(value), 3),
        }
    )
