# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every method with anything: a reply each time, from the table of errors, and never a bug.

Examples are drawn in batches, and a batch is in flight at once over one connection.
"""

import asyncio
import gc
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Message, MessageFlag, MessageType, Variant
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kmodd.dbus.interface_xml import Contract, split
from kmodd.errors import ERRORS, INTERNAL
from tests.bus.bench import Bench, bench
from tests.bus.buses import NAME, PATH, ROOT, Client

CONTRACT = Contract.parse((ROOT / "dbus/org.kmodd1.xml").read_text())
METHODS = [
    (interface.name, method.name, method.takes)
    for interface in CONTRACT.interfaces.values()
    for method in interface.methods.values()
]
BATCH = 25
EXAMPLES = 40
"""Batches: a thousand examples for each method and class of caller."""
STANDARD = {"UnknownObject", "UnknownInterface", "UnknownMethod", "UnknownProperty", "PropertyReadOnly"}
ALLOWED = set(ERRORS) | {f"org.freedesktop.DBus.Error.{name}" for name in STANDARD}

NAMES = ["overlay", "overlay", "loop", "dummy", "vfat", "fat", "ext4", "nosuch", "pci:v00008086d00001237sv*", "module"]
WORDS = [
    *NAMES, "CVE-2026-31431", "CVE-2026-31431",
    "", "..", "../x", "a\nb", "load", "unload", "reload", "org.kmodd1.Manager", "org.kmodd1.Module",
    "Version", "State", "redirect_max", "redirect_max", "metacopy", "numdummies", "64", "1", "x" * 56,
    "x" * 4097, 'a"b', "$(id)", "%s%n", "*", "all", "loaded", "full", "public", "[", "[!",
]  # fmt: skip
OPTIONS = [
    "dry-run", "evidence", "reason", "timeout", "override-policy", "dependents", "unused-dependencies", "atomic", "state", "match",
    "module", "since", "limit", "hard", "only-modules", "public", "on-behalf-of", "nonsense", "modules", "force-in-use",
]  # fmt: skip
PATHS = [PATH, f"{PATH}/module/loop", f"{PATH}/module/ext4", f"{PATH}/job/1", f"{PATH}/module", "/", "/org", "/nowhere"]

# A bus message carries neither surrogates nor NUL.
texts = st.one_of(
    st.sampled_from(WORDS),
    st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=20),
)
INTEGERS = {"y": (0, 2**8), "n": (-(2**15), 2**15), "q": (0, 2**16), "i": (-(2**31), 2**31), "u": (0, 2**32), "h": (0, 2**32),
            "x": (-(2**63), 2**63), "t": (0, 2**64)}  # fmt: skip
SIGNATURES = [
    "",
    "s",
    "ss",
    "v",
    "as",
    "a{sv}",
    "a{ss}",
    "sa{sv}",
    "sa{ss}a{sv}",
    "a(ssa{ss})a{sv}",
    "aav",
    "(((s)))",
    "d",
    "o",
]


def variants(type_: str) -> st.SearchStrategy[Variant]:
    """Variants of one type."""

    def wrap(value: Any) -> Variant:
        return Variant(type_, value)

    return values(type_).map(wrap)


def values(type_: str) -> st.SearchStrategy[Any]:
    """Values of a complete type, as dbus-next takes them."""
    code = type_[0]
    if code == "s":
        return texts
    if code == "o":
        return st.sampled_from(PATHS)
    if code == "b":
        return st.booleans()
    if code == "d":
        return st.floats()
    if code in INTEGERS:
        low, high = INTEGERS[code]
        return st.integers(low, high - 1)
    if code == "v":
        return st.one_of(*map(variants, ("b", "s", "u", "t", "d", "as", "a{ss}")))
    if type_.startswith("a{"):
        key, value = split(type_[2:-1])
        keys = st.sampled_from(OPTIONS) if value == "v" else texts
        return st.dictionaries(keys if key == "s" else values(key), values(value), max_size=3)
    if code == "a":
        return st.lists(values(type_[1:]), max_size=3)
    return st.tuples(*map(values, split(type_[1:-1]))).map(list)


# Free texts alone hardly ever make up what a method goes on with; half of these do.
WRITES = st.tuples(
    st.just("overlay"), st.sampled_from(["redirect_max", "metacopy"]), st.one_of(st.sampled_from(["64", "Y"]), texts)
)
READS = st.tuples(
    st.sampled_from(["org.kmodd1.Manager", "org.kmodd1.Module"]), st.sampled_from(["Version", "State", "Holders"])
)
OPERATIONS = st.tuples(st.sampled_from(["load", "unload", "reload"]), st.sampled_from(NAMES), st.just({})).map(list)
BATCHES: st.SearchStrategy[Any] = st.tuples(st.lists(OPERATIONS, max_size=3), st.just({}))
SHAPED = {
    "sssa{sv}": WRITES.map(lambda write: [*write, {}]),
    "ss": READS.map(list),
    "a(ssa{ss})a{sv}": BATCHES.map(list),
}


def bodies(signature: str) -> st.SearchStrategy[tuple[str, list[Any]]]:
    """A signature with values of it."""
    free = st.tuples(*map(values, split(signature))).map(list)
    return st.tuples(st.just(signature), st.one_of(free, SHAPED[signature]) if signature in SHAPED else free)


def messages(takes: str) -> st.SearchStrategy[tuple[str, tuple[str, list[Any]], bool]]:
    """(path, (signature, body), interactive): mostly well-formed calls of the right object, for the method's own code."""
    right = bodies(takes)
    wrong = st.sampled_from(SIGNATURES).flatmap(bodies)
    return st.tuples(
        st.one_of(st.just(PATH), st.just(PATH), st.sampled_from(PATHS)),
        st.one_of(right, right, right, wrong),
        st.booleans(),
    )


@cache
def examples(takes: str) -> list[list[tuple[str, tuple[str, list[Any]], bool]]]:
    """Batches for a method with these arguments: drawn once, since drawing them takes four times as long as sending them.

    They are the same for all methods with these arguments and every class of caller, as they are in every run.
    """
    drawn: list[list[tuple[str, tuple[str, list[Any]], bool]]] = []

    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.lists(messages(takes), min_size=BATCH, max_size=BATCH))
    def draw(batch: list[tuple[str, tuple[str, list[Any]], bool]]) -> None:
        drawn.append(batch)

    draw()
    return drawn


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


@pytest.mark.parametrize("uid", [0, 1000, None], ids=["root", "user", "unknown"])
@pytest.mark.parametrize(
    ("interface", "member", "takes"), METHODS, ids=[f"{row[0].rpartition('.')[2]}.{row[1]}" for row in METHODS]
)
def test_anything_is_answered(
    loop: asyncio.AbstractEventLoop, tmp_path: Path, interface: str, member: str, takes: str, uid: int | None
) -> None:
    made = bench(tmp_path, polkit_timeout=5.0)
    service: Bench = loop.run_until_complete(made.__aenter__())
    try:
        service.kernel.modprobe("overlay")
        connection = service.client(uid)
        client = loop.run_until_complete(connection.__aenter__())
        answered = succeeded = 0
        for batch in examples(takes):
            succeeded += loop.run_until_complete(_all_answered(client, interface, member, batch))
            answered += len(batch)
        loop.run_until_complete(service.settled())
        assert answered >= 1000
        # Root gets through to the end of everything that can be done without an operation waiting.
        # A store without versions has nothing for three of the others, there is no response or trial to end, and no descriptor comes along.
        assert (
            succeeded
            or uid != 0
            or member
            in {"Set", "Cancel", "Import", "Activate", "Deactivate", "Remove", "EndResponse", "Confirm", "Revert"}
        )
        assert service.quota.idle
        assert service.counts["failed"] == 0, service.bugs
        loop.run_until_complete(connection.__aexit__(None, None, None))
    finally:
        loop.run_until_complete(made.__aexit__(None, None, None))
        loop.run_until_complete(asyncio.sleep(0.01))
    assert not asyncio.all_tasks(loop)
    gc.collect()


async def _all_answered(
    client: Client, interface: str, member: str, batch: list[tuple[str, tuple[str, list[Any]], bool]]
) -> int:
    """Send a batch, and answer how many succeeded."""
    prompt, silent = MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION, MessageFlag.NONE
    calls = [
        Message(NAME, path, interface, member, signature=signature, body=body, flags=prompt if interactive else silent)
        for path, (signature, body), interactive in batch
    ]
    replies = await asyncio.wait_for(asyncio.gather(*map(client.transport._bus.call, calls)), 30)
    for reply, example in zip(replies, batch, strict=True):
        assert reply is not None
        if reply.message_type is MessageType.ERROR:
            assert reply.error_name in ALLOWED, example
            text = reply.body[0]
            assert text != INTERNAL, example
            assert "Traceback" not in text, example
            assert len(text) < 1024, example
    return sum(1 for reply in replies if reply is not None and reply.message_type is MessageType.METHOD_RETURN)
