# SPDX-License-Identifier: LGPL-2.1-or-later
"""Memory that is not kept."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(program: str) -> str:
    """In a process of its own: what is set cannot be unset, and what is free depends on what ran before."""
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True, timeout=60
    ).stdout


def test_no_huge_pages_are_taken() -> None:
    out = run(
        "import ctypes; from kmodd.kernel.memory import refuse_huge_pages as refuse\n"
        "get = lambda: ctypes.CDLL(None).prctl(42, 0, 0, 0, 0)\n"
        "print(get()); refuse(); print(get())"
    )
    assert out.split() == ["0", "1"]


def test_what_is_free_goes_back_to_the_system() -> None:
    # Blocks below malloc's limit for mappings, every second of them freed last, so that the top of the heap stays in use.
    out = run(
        "from kmodd.kernel.memory import trim_heap\n"
        "rss = lambda: int(open('/proc/self/statm').read().split()[1]) * 4 // 1024\n"
        "blocks = [bytes(100_000) for _ in range(400)]; last = bytes(1000)\n"
        "full = rss(); blocks.clear(); trim_heap(); print(full - rss())"
    )
    assert int(out) >= 20


def test_what_is_remembered_is_dropped_first() -> None:
    out = run(
        "from kmodd.kernel.memory import trim_heap\n"
        "rss = lambda: int(open('/proc/self/statm').read().split()[1]) * 4 // 1024\n"
        "kept = {number: bytes(100_000) for number in range(400)}; last = bytes(1000)\n"
        "full = rss(); trim_heap(kept.clear); print(full - rss())"
    )
    assert int(out) >= 20
