# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kmodctl store`: versions of custom modules, and signing one as the kernel build does.

The kernel's sign-file signs if it is installed, otherwise openssl. The format is that of scripts/sign-file.c: the module, a
detached CMS signature without attributes and certificates in DER, struct module_signature, and a magic string. The program that
uses the key asks for its passphrase; kmodctl never sees it.
"""

import gzip
import lzma
import os
import stat
import struct
import subprocess
import tempfile
import zlib
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, cast

from kmodd.cli.output.screen import Screen
from kmodd.cli.output.table import Column, render
from kmodd.cli.output.text import clean, counted, size
from kmodd.cli.session import Session, confirm_disconnect
from kmodd.client.store import Store, stored_module
from kmodd.errors import BadModule, Conflict, Evidence, InvalidArgs, KmoddError, NoSuchModule
from kmodd.model import State
from kmodd.model.store import StoredModule

SHORT = 12
HASH = "sha256"
MAXIMUM = 256 << 20
"""Bytes that are read, and unpacked: what the daemon would take at most."""
MARK = b"~Module signature appended~\n"
_PKCS7 = 2
_TRAILER = struct.Struct(">BBBBB3xI")
_SIGN_FILE = (
    "/lib/modules/*/build/scripts/sign-file",
    "/usr/lib/linux-kbuild-*/scripts/sign-file",
    "/usr/src/linux-headers-*/scripts/sign-file",
    "/usr/src/kernels/*/scripts/sign-file",
)


async def run_list(session: Session, arguments: Namespace) -> int:
    """Show every version."""
    wanted = arguments.module.replace("-", "_")
    data = [row for row in await Store(session.client).data("List") if not wanted or row["name"] == wanted]
    if session.json:
        session.document(data)
    else:
        session.screen.show(lines([stored_module(row) for row in data], session.screen))
    return 0


def lines(versions: Sequence[StoredModule], screen: Screen) -> list[str]:
    """The table."""
    if not versions:
        return ["No custom modules."] if screen.stdout.isatty() else []
    paint, glyphs = screen.paint, screen.glyphs
    header = [
        Column("", paint=paint.good),
        Column("MODULE", paint=paint.name),
        Column("VERSION"),
        Column("KERNEL"),
        Column("SIZE", right=True),
        Column("SHA256", paint=paint.dim),
        Column("SIGNED BY"),
        Column("DESCRIPTION", stretch=True),
    ]
    rows = [
        [
            glyphs.full if version.active else "",
            clean(version.name),
            clean(version.version),
            clean(version.kernel),
            size(version.size),
            version.sha256[:SHORT],
            clean(version.signer or ("unknown" if version.signed else "nobody")),
            clean(version.description),
        ]
        for version in versions
    ]
    table = render(screen, header, rows)
    summary = f"{counted(len(versions), 'version')}, {glyphs.full} is active"
    return [*table, "", paint.dim(summary)] if screen.stdout.isatty() else table


async def run_import(session: Session, arguments: Namespace) -> int:
    """Sign the file if requested, and pass it to the daemon."""
    try:
        # O_NONBLOCK: a FIFO would wait for a writer here; the daemon says that it wants a file.
        file = os.open(arguments.file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise InvalidArgs(f"{clean(arguments.file)} cannot be read: {error.strerror}") from error
    try:
        if arguments.sign:
            from kmodd.cli.commands.store import signed  # subprocess, only where it is needed

            plain, file = file, -1
            file = signed(plain, *arguments.sign)
        session.authorize()
        store = Store(session.client)
        send = store.try_file if arguments.dry_run else store.import_file
        imported = await send(
            file,
            version=arguments.version,
            description=arguments.description,
            shadow=arguments.shadow,
            reason=arguments.reason,
        )
    finally:
        if file >= 0:
            os.close(file)
    if session.json:
        session.document({"name": imported.name, "version": imported.version, "sha256": imported.sha256})
        return 0
    paint, glyphs = session.screen.paint, session.screen.glyphs
    name, version = clean(imported.name), clean(imported.version)
    if arguments.version and arguments.version != imported.version:
        message = f"this file is already in the store: {paint.name(name)} {version}"
        session.screen.tell(f"{paint.dim(glyphs.same)} {message}")
        return 0
    if arguments.dry_run:
        message = f"{paint.name(name)} would be imported as version {version}"
        session.screen.tell(f"{paint.good(glyphs.yes)} {message}{paint.dim(' (dry run, nothing was changed)')}")
        return 0
    session.screen.tell(f"{paint.good(glyphs.yes)} imported {paint.name(name)} {version}")
    session.screen.tell(paint.dim(f"  kmodctl store activate {name} {version} activates it"))
    return 0


async def run_switch(session: Session, arguments: Namespace) -> int:
    """Bring a version into force, or take it out."""
    session.authorize()
    try:
        return await _switch(session, arguments)
    except NoSuchModule as error:
        # Not one of the kernel's: what it is called there says nothing.
        error.evidence = Evidence(hint="kmodctl store list")
        raise


async def _switch(session: Session, arguments: Namespace) -> int:
    store = Store(session.client)
    name = clean(arguments.module)
    is_so = "would be" if arguments.dry_run else "is"
    if arguments.load and arguments.disconnect and not arguments.dry_run:
        await confirm_disconnect(session, [("reload", arguments.module, {})], {"disconnect": True})
    if arguments.verb == "activate":
        touched = await store.activate(
            arguments.module,
            arguments.version,
            load=arguments.load,
            disconnect=arguments.disconnect,
            kernel=arguments.kernel,
            dry_run=arguments.dry_run,
            reason=arguments.reason,
        )
        message = f"version {clean(arguments.version)} of {session.screen.paint.name(name)} {is_so} active"
    else:
        touched = await store.deactivate(
            arguments.module,
            load=arguments.load,
            disconnect=arguments.disconnect,
            kernel=arguments.kernel,
            dry_run=arguments.dry_run,
            reason=arguments.reason,
        )
        message = f"no version of {session.screen.paint.name(name)} from the store {is_so} active"
    if session.json:
        session.document({"module": arguments.module, "reloaded": list(touched)})
    else:
        paint, glyphs = session.screen.paint, session.screen.glyphs
        loaded = f", {await _became(session, arguments)}: {clean(' '.join(touched))}" if touched else ""
        verdict = paint.dim(" (dry run, nothing was changed)") if arguments.dry_run else ""
        session.screen.tell(f"{paint.good(glyphs.yes)} {message}{loaded}{verdict}")
    return 0


async def _became(session: Session, arguments: Namespace) -> str:
    """What became of a module that was touched: where no other one has its name, there is nothing to load in its place."""
    if arguments.verb == "activate":
        return "reloaded"
    # It is done, and what cannot be found out about it now does not make it fail.
    with suppress(KmoddError):
        if not arguments.dry_run:
            explanation = await session.client.explain(arguments.module)
            return "reloaded" if explanation.state in (State.LIVE, State.COMING) else "unloaded"
    return "reloaded or unloaded"


async def run_remove(session: Session, arguments: Namespace) -> int:
    """Remove a version that is not active."""
    session.authorize()
    try:
        await Store(session.client).remove(
            arguments.module, arguments.version, dry_run=arguments.dry_run, reason=arguments.reason
        )
    except NoSuchModule as error:
        error.evidence = Evidence(hint="kmodctl store list")
        raise
    except Conflict as error:
        error.evidence = Evidence(hint=f"kmodctl store deactivate {clean(arguments.module)}")
        raise
    if session.json:
        session.document({"module": arguments.module, "version": arguments.version, "removed": not arguments.dry_run})
    else:
        paint, glyphs = session.screen.paint, session.screen.glyphs
        done = "would remove" if arguments.dry_run else "removed"
        message = f"{done} version {clean(arguments.version)} of {paint.name(clean(arguments.module))}"
        session.screen.tell(f"{paint.good(glyphs.yes)} {message}")
    return 0


def signed(file: int, key: str, certificate: str, programs: Sequence[str] = _SIGN_FILE) -> int:
    """A new descriptor of the signed module; `file` is closed.

    InvalidArgs says what is wrong with file, key or program, BadModule that it is no file at all.
    """
    if not stat.S_ISREG(os.fstat(file).st_mode):  # a device may have no end
        os.close(file)
        raise BadModule("the descriptor is not a regular file")
    with os.fdopen(file, "rb") as source, tempfile.TemporaryDirectory(prefix="kmodctl-") as name:
        folder = Path(name)
        plain = folder / "plain.ko"
        content = _unpacked(source)
        if content.endswith(MARK):
            raise InvalidArgs("the module is signed already")
        plain.write_bytes(content)
        for what, path in (("key", key), ("certificate", certificate)):
            if not Path(path).is_file() and not path.startswith("pkcs11:"):
                raise InvalidArgs(f"the {what} to sign with does not exist")
        candidates = sorted(
            str(path)
            for pattern in programs
            for path in Path("/").glob(pattern.lstrip("/"))
            if os.access(path, os.X_OK)
        )
        if candidates:
            _run([candidates[-1], HASH, key, certificate, str(plain)])
            content = plain.read_bytes()
        else:
            content = plain.read_bytes() + _with_openssl(plain, key, certificate, folder)
        result = os.memfd_create("module", os.MFD_CLOEXEC)
        with os.fdopen(os.dup(result), "wb") as target:
            target.write(content)
        return result


def _with_openssl(plain: Path, key: str, certificate: str, folder: Path) -> bytes:
    pem = folder / "certificate.pem"
    try:
        own = Path(certificate).read_bytes()
    except OSError as error:
        raise InvalidArgs(f"the certificate to sign with cannot be read: {error.strerror}") from error
    if own.startswith(b"-----BEGIN"):
        pem = Path(certificate)
    else:  # as mokutil wants it
        _run(["openssl", "x509", "-inform", "DER", "-in", certificate, "-out", str(pem)])
    signature = folder / "signature"
    form = ["-binary", "-noattr", "-nosmimecap", "-nocerts", "-md", HASH, "-outform", "DER"]
    files = ["-signer", str(pem), "-inkey", key, "-in", str(plain), "-out", str(signature)]
    _run(["openssl", "cms", "-sign", *form, *files])
    data = signature.read_bytes()
    return data + _TRAILER.pack(0, 0, _PKCS7, 0, 0, len(data)) + MARK


def _run(command: list[str]) -> None:
    program = command[0].rpartition("/")[2]
    try:
        done = subprocess.run(command, check=False)
    except OSError as error:
        raise InvalidArgs(
            f"the module cannot be signed: {program} and the kernel's sign-file are not installed"
        ) from error
    if done.returncode != 0:
        raise InvalidArgs(f"the module cannot be signed: {program} failed")


def _unpacked(source: IO[bytes]) -> bytes:
    """The module itself: the signature is of what the kernel loads."""
    start = os.pread(source.fileno(), 6, 0)
    try:
        if start.startswith(b"\x1f\x8b"):
            return _bounded(gzip.GzipFile(fileobj=source))
        if start.startswith(b"\xfd7zXZ\0"):
            return _bounded(lzma.LZMAFile(source))
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise InvalidArgs("the file does not unpack") from error
    return _zstd(source) if start.startswith(b"\x28\xb5\x2f\xfd") else _bounded(source)


def _zstd(source: IO[bytes]) -> bytes:
    # Python has it only since 3.14.
    try:
        process = subprocess.Popen(["zstd", "-dcq"], stdin=source.fileno(), stdout=subprocess.PIPE)
    except OSError as error:
        raise InvalidArgs("the file cannot be unpacked: zstd is not installed") from error
    with process:
        try:
            content = _bounded(cast("IO[bytes]", process.stdout))
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise InvalidArgs("the file does not unpack")
    return content


def _bounded(source: IO[bytes] | lzma.LZMAFile | gzip.GzipFile) -> bytes:
    content = source.read(MAXIMUM + 1)
    if len(content) > MAXIMUM:
        raise InvalidArgs(f"a module is at most {MAXIMUM >> 20} MiB")
    return content
