# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon's side of the parser: one unprivileged process for each file, with a deadline."""

import asyncio
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from kmodd.kernel.worker.worker_client import WorkerProcess, WorkerUnit
from kmodd.model.store import Examination, FileFault, KernelMatch

TIMEOUT = 60.0
"""Seconds for one file: the largest ones take a few on a slow machine."""
_ENDING = 5.0
_TEXT_MAX = 1024
_LIST_MAX = 64


class ModuleParser:
    """Has files examined by separate processes."""

    def __init__(
        self, root: Path, release: str, *, unit_socket: str = "", timeout: float = TIMEOUT, program: Sequence[str] = ()
    ) -> None:
        """`release` is the running kernel; `unit_socket` is where systemd starts parsers, without it they are children."""
        self._root = root
        self._release = release
        self._unit_socket = unit_socket
        self._timeout = timeout
        self._program = tuple(program) or (
            sys.executable,
            "-I",
            "-S",
            str(Path(__file__).with_name("parser.py")),
        )

    async def examine(self, source: int, copy: int, plain: int, *, maximum: int, unpacked: int) -> Examination:
        """Have the file `source` copied to `copy`, unpacked to `plain` and examined.

        Where no answer can be had, the Examination has a fault. OSError when no process can be started. The descriptors stay
        the caller's; they must be readable, the last two writable. A parser that systemd started and that hangs may still
        write to these when this returns: it has another user, so that the daemon, which holds no CAP_KILL, cannot end it
        (kill(2)), and systemd ends it by the time limit of its unit. Seals keep what is taken over from being written to.
        """
        order = json.dumps(
            {"maximum": maximum, "unpacked": unpacked, "root": str(self._root), "release": self._release}
        ).encode()
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def answered(_: WorkerProcess, data: bytes) -> None:
            if not answer.done():
                answer.set_result(data)

        process = self._start(answered, lambda ended: answered(ended, b""))
        try:
            process.send(order, (source, copy, plain))
            async with asyncio.timeout(self._timeout):
                data = await answer
        except TimeoutError:
            return Examination(FileFault.TIMED_OUT)
        finally:
            if not self._unit_socket:
                process.kill()
            process.dismiss()
            # Cancelled or not: one that leaves by itself does not write to the files any more.
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(process.gone), _ENDING)
            process.forget()
        return read_examination(data)

    def _start(
        self, answered: Callable[[WorkerProcess, bytes], None], ended: Callable[[WorkerProcess], None]
    ) -> WorkerProcess:
        if self._unit_socket:
            return _ParserUnit((self._unit_socket,), answered=answered, ended=ended)
        return _ParserProcess(self._program, answered=answered, ended=ended)


class _ParserProcess(WorkerProcess):
    answer_max = 64 << 10


class _ParserUnit(WorkerUnit):
    answer_max = 64 << 10


def read_examination(data: bytes) -> Examination:
    """Take the parser's answer apart as if a stranger had written it; anything odd is the fault PARSER_DIED."""
    try:
        fields = _Fields(json.loads(data))
        match = _Fields(fields.values["match"])
        return Examination(
            fault=FileFault(fault) if (fault := fields.text("fault")) else "",
            name=fields.text("name"),
            machine=fields.number("machine"),
            version=fields.text("version"),
            description=fields.text("description"),
            vermagic=fields.text("vermagic"),
            depends=fields.texts("depends"),
            softdeps=fields.texts("softdeps"),
            versions=fields.flag("versions"),
            signed=fields.flag("signed"),
            signer=fields.text("signer"),
            unpacked=fields.flag("unpacked"),
            match=KernelMatch(
                release=match.text("release"),
                tree=match.flag("tree"),
                vermagic=match.text("vermagic"),
                machine=match.number("machine"),
                unknown=match.texts("unknown"),
                mismatched=match.texts("mismatched"),
                unchecked=match.number("unchecked"),
            ),
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return Examination(FileFault.PARSER_DIED)


class _Fields:
    """A mapping whose values must have the expected types; ValueError, KeyError or TypeError otherwise."""

    def __init__(self, values: Any) -> None:
        if not isinstance(values, Mapping):
            raise TypeError
        self.values = values

    def text(self, name: str) -> str:
        return _text(self.values[name])

    def texts(self, name: str) -> tuple[str, ...]:
        value = self.values[name]
        if not isinstance(value, list) or len(value) > _LIST_MAX:
            raise ValueError(name)
        return tuple(map(_text, value))

    def number(self, name: str) -> int:
        value = self.values[name]
        if type(value) is not int or not 0 <= value < 1 << 32:
            raise ValueError(name)
        return value

    def flag(self, name: str) -> bool:
        value = self.values[name]
        if not isinstance(value, bool):
            raise TypeError(name)
        return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _TEXT_MAX or not value.isprintable():
        raise ValueError("not a printable text")
    return value
