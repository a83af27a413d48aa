"""Where built things are kept: outside the repository, named by a hash of what they are made of.

An entry is a folder. It is made under a temporary name and renamed when it is whole, under a lock, so that a
half-made one is never found and two processes never make the same one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from tests.vm.progress import say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

# Snapshots of installed trees come and go with every edit; these many stay for each kind.
KEEP = 4
_IDENTITY = "identity"
# A snapshot used within this many seconds may be about to be opened by somebody: never removed.
IN_USE_SECONDS = 900.0


def cache_root() -> Path:
    """``$KMODD_CACHE``, else ``kmodd`` in the user's cache folder."""
    configured = os.environ.get("KMODD_CACHE")
    if configured:
        return Path(configured)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kmodd"


def digest(parts: Iterable[str | bytes | Path]) -> str:
    """A short name for these inputs: texts as they are, files by mode and content, folders by all their files."""
    result = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            _add_path(result, part)
        else:
            data = part.encode() if isinstance(part, str) else part
            result.update(b"%d:" % len(data) + data)
    return result.hexdigest()[:16]


def _add_path(result: hashlib._Hash, path: Path) -> None:
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.is_file() and "__pycache__" not in f.parts)
        for file in files:
            result.update(f"{file.relative_to(path)}\0".encode())
            _add_path(result, file)
        return
    data = path.read_bytes()
    result.update(b"%o %d:" % (path.stat().st_mode & 0o111, len(data)) + data)


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the lock of this name against every other process that uses the same cache."""
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    with (root / f".{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that makes the same ({name})")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def entry(kind: str, key: str, make: Callable[[Path], None], *, prune: bool = False, fresh: bool = False) -> Path:
    """The folder ``kind-key``, made by ``make(folder)`` when it is not there yet.

    ``fresh`` makes it anew. ``prune`` removes the oldest entries of the kind beyond :data:`KEEP`.
    """
    folder = cache_root() / f"{kind}-{key}"
    with locked(kind):
        if fresh or not (folder / _IDENTITY).exists():
            _discard_halves(kind)
            half = Path(tempfile.mkdtemp(prefix=f".half-{kind}-", dir=cache_root()))
            try:
                half.chmod(0o755)
                make(half)
                (half / _IDENTITY).write_text(uuid.uuid4().hex)
                if folder.exists():
                    shutil.rmtree(folder)
                half.rename(folder)
            finally:
                shutil.rmtree(half, ignore_errors=True)
        os.utime(folder)
        if prune:
            _prune(kind, folder)
    return folder


def identity(folder: Path) -> str:
    """Which making of an entry this is: what is derived from one does not fit another made from the same inputs."""
    return (folder / _IDENTITY).read_text()


def _discard_halves(kind: str) -> None:
    """What a killed build left behind. The caller holds the kind's lock: nobody is working in them."""
    for half in cache_root().glob(f".half-{kind}-*"):
        shutil.rmtree(half, ignore_errors=True)


def _prune(kind: str, keep: Path) -> None:
    entries = sorted(cache_root().glob(f"{kind}-*"), key=lambda p: p.stat().st_mtime, reverse=True)
    for old in entries[KEEP:]:
        if old != keep and time.time() - old.stat().st_mtime > IN_USE_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
