# SPDX-License-Identifier: LGPL-2.1-or-later
"""The one file that speaks to the API: what a watch must survive, on a real server, with a proxy that does what networks do."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kmodd.fleet import kubernetes as client
from kmodd.fleet.kubernetes import (
    CONFLICT,
    FORBIDDEN,
    JSON_PATCH,
    NODE_MODULES,
    NOT_FOUND,
    Access,
    Api,
    ApiFault,
    Kind,
    Listing,
)
from tests.fleet.cluster import Cluster, cluster
from tests.fleet.proxy import Proxy

ROUNDS = 8
PODS_METADATA = Kind("", "v1", "ConfigMap", "configmaps", namespaced=True, metadata_only=True)
BUSY = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n\r\nbusy"


@pytest.fixture
def proxy(kubernetes: Cluster) -> Iterator[Proxy]:
    """A proxy in front of the API server."""
    with Proxy(kubernetes).running() as made:
        yield made


@pytest.fixture(scope="module")
def uncached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A server whose watches come from etcd."""
    with cluster(tmp_path_factory.mktemp("uncached"), watch_cache=False) as made:
        yield made


@pytest.fixture
def token(kubernetes: Cluster, tmp_path: Path) -> Path:
    """A file with the token of a service account that may do everything."""
    return all_powerful(kubernetes, tmp_path)


def all_powerful(kubernetes: Cluster, tmp_path: Path) -> Path:
    """A file with the token of such an account."""
    kubernetes.service_account("watcher")
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "watcher"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "watcher", "namespace": "default"}],
    }
    kubernetes.apply(binding)
    path = tmp_path / "token"
    path.write_text(kubernetes.token("watcher"))
    return path


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits as long as these tests have time for."""
    monkeypatch.setattr(client, "SPREAD", 1.0)
    monkeypatch.setattr(client, "FIRST_WAIT", 0.2)


class Reader:
    """What somebody who follows objects knows: names with their annotation `n`."""

    def __init__(self) -> None:
        self.known: dict[str, str] = {}
        self.listings = 0
        self.troubles: list[ApiFault | None] = []

    async def read(self, api: Api, kind: Kind = NODE_MODULES, **more: Any) -> None:
        async with aclosing(api.follow(kind, **more)) as events:
            async for event in events:
                if isinstance(event, Listing):
                    self.listings += 1
                    self.known = {name(item): note(item) for item in event.items}
                elif event.type == "DELETED":
                    self.known.pop(name(event.object), None)
                else:
                    self.known[name(event.object)] = note(event.object)

    async def until(self, condition: Callable[[dict[str, str]], bool], seconds: float = 20.0) -> None:
        deadline = asyncio.get_running_loop().time() + seconds
        while not condition(self.known):
            assert asyncio.get_running_loop().time() < deadline, (self.known, self.troubles)
            await asyncio.sleep(0.02)


def name(document: dict[str, Any]) -> str:
    """Of an object."""
    return str(document["metadata"]["name"])


def note(document: dict[str, Any]) -> str:
    """Its annotation."""
    return str(document["metadata"].get("annotations", {}).get("n", ""))


@asynccontextmanager
async def following(kubeconfig: Path, **more: Any) -> AsyncIterator[tuple[Api, Reader]]:
    """An Api, and a reader that has read the first list."""
    reader = Reader()
    api = Api(Access(kubeconfig), "tests", trouble=reader.troubles.append)
    task = asyncio.ensure_future(reader.read(api, **more))
    try:
        await reader.until(lambda _: reader.listings > 0 or task.done())
        yield api, reader
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await api.close()


async def make(api: Api, *names: str) -> None:
    """NodeModules of these names."""
    for each in names:
        await api.create(NODE_MODULES, {"metadata": {"name": each}})


async def mark(api: Api, each: str, text: str) -> None:
    """Set the annotation."""
    await api.patch(NODE_MODULES, each, {"metadata": {"annotations": {"n": text}}})


def unique(count: int = 1) -> list[str]:
    """Names of no other test's objects."""
    return [f"client-{os.urandom(4).hex()}" for _ in range(count)]


def only(each: str) -> dict[str, Any]:
    """Arguments that follow one object."""
    return {"fields": {"metadata.name": each}}


async def test_objects_come_change_and_go(kubernetes: Cluster) -> None:
    (each,) = unique()
    async with following(kubernetes.kubeconfig, **only(each)) as (api, reader):
        assert not reader.known
        await make(api, each)
        await mark(api, each, "1")
        await reader.until(lambda known: known == {each: "1"})
        await api.delete(NODE_MODULES, each)
        await reader.until(lambda known: not known)
        assert reader.listings == 1


async def test_texts_that_python_takes_for_line_ends_pass_whole(kubernetes: Cluster) -> None:
    """Red with the lines of the library: U+0085 is not escaped by the server, and ends a line for str.splitlines."""
    (each,) = unique()
    async with following(kubernetes.kubeconfig, **only(each)) as (api, reader):
        await make(api, each)
        text = "a\x85b\u2028c\u2029d\x1ce\x0bf"
        await mark(api, each, text)
        await reader.until(lambda known: known == {each: text})
        assert reader.listings == 1
        assert not [trouble for trouble in reader.troubles if trouble]


async def test_no_deletion_is_lost_when_versions_are_gone(uncached: Cluster, tmp_path: Path) -> None:
    """410: the watch was cut, objects came and went meanwhile, and etcd forgot how. Several times."""
    token = await asyncio.to_thread(all_powerful, uncached, tmp_path)
    with Proxy(uncached).running() as proxy:
        kubeconfig = uncached.write_kubeconfig("proxy.conf", token_file=token, port=proxy.port)
        direct = Api(Access(uncached.kubeconfig), "tests")
        async with following(kubeconfig) as (_, reader):
            there: list[str] = []
            for number in range(ROUNDS):
                proxy.refuse = True
                proxy.cut()
                await asyncio.sleep(0.05)
                new = unique(2)
                await make(direct, *new)
                for gone in there:
                    await direct.delete(NODE_MODULES, gone)
                there = new
                await mark(direct, new[0], str(number))
                await asyncio.to_thread(uncached.compact)
                proxy.refuse = False
                wanted = {new[0]: str(number), new[1]: ""}
                await reader.until(lambda known, wanted=wanted: known == wanted)  # type: ignore[misc]
            assert reader.listings == ROUNDS + 1
        await direct.close()


async def test_a_cut_connection_goes_on_where_it_was(kubernetes: Cluster, proxy: Proxy, token: Path) -> None:
    (each,) = unique()
    kubeconfig = kubernetes.write_kubeconfig("proxy.conf", token_file=token, port=proxy.port)
    direct = Api(Access(kubernetes.kubeconfig), "tests")
    async with following(kubeconfig, **only(each)) as (_, reader):
        await make(direct, each)
        for number in range(5):
            proxy.cut()
            await mark(direct, each, str(number))
            await reader.until(lambda known, number=number: known == {each: str(number)})  # type: ignore[misc]
        proxy.cut()
        await direct.delete(NODE_MODULES, each)
        await reader.until(lambda known: not known)
        assert reader.listings == 1
    await direct.close()


async def test_half_a_line_is_no_event(kubernetes: Cluster, proxy: Proxy, token: Path) -> None:
    (each,) = unique()
    kubeconfig = kubernetes.write_kubeconfig("proxy.conf", token_file=token, port=proxy.port)
    direct = Api(Access(kubernetes.kubeconfig), "tests")
    async with following(kubeconfig, **only(each)) as (_, reader):
        await make(direct, each)
        await reader.until(lambda known: each in known)
        proxy.half_line = b"half-of-this"
        await mark(direct, each, "half-of-this")
        await reader.until(lambda known: known == {each: "half-of-this"})
        assert not proxy.half_line
        assert reader.listings == 1
    await direct.close()


async def test_a_server_that_is_busy_is_left_alone_for_as_long_as_it_says(
    kubernetes: Cluster, proxy: Proxy, token: Path
) -> None:
    kubeconfig = kubernetes.write_kubeconfig("proxy.conf", token_file=token, port=proxy.port)
    api = Api(Access(kubeconfig), "tests")
    loop = asyncio.get_running_loop()
    proxy.answers += [BUSY, BUSY]
    began = loop.time()
    assert isinstance(await api.list(NODE_MODULES), Listing)
    assert loop.time() - began >= 2
    assert len(proxy.requests) == 3
    proxy.answers += [BUSY] * 10
    with pytest.raises(ApiFault) as busy:
        await api.list(NODE_MODULES)
    assert (busy.value.code, busy.value.retry_after) == (client.TOO_MANY, 1.0)
    await api.close()


@pytest.mark.parametrize(
    "answers",
    [
        [b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>"],
        [b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n[]"],
        [b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1\r\n\r\n5"],
        [b"nonsense\r\n\r\n"],
        [b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"] * 2,
    ],
    ids=["502 without a type", "a page", "a list", "a number", "no HTTP", "401"],
)
async def test_what_is_no_answer_of_the_api_is_a_fault(
    kubernetes: Cluster, proxy: Proxy, token: Path, answers: list[bytes]
) -> None:
    kubeconfig = kubernetes.write_kubeconfig("proxy.conf", token_file=token, port=proxy.port)
    api = Api(Access(kubeconfig), "tests")
    try:
        proxy.answers = list(answers)
        with pytest.raises(ApiFault):
            await api.get(NODE_MODULES, "x")
        with pytest.raises(ApiFault) as missing:  # and the next one is as it should be
            await api.get(NODE_MODULES, "x")
        assert missing.value.code == NOT_FOUND
        proxy.answers = list(answers)
        (each,) = unique()
        async with following(kubeconfig, **only(each)) as (_, reader):
            await make(api, each)
            await reader.until(lambda known: each in known)
            assert [trouble for trouble in reader.troubles if trouble]
            assert reader.troubles[-1] is None
    finally:
        await api.close()


@pytest.mark.parametrize(
    "text",
    [
        '{"metadata": {"resourceVersion": "1"}, "items": [{"metadata": []}]}',
        '{"metadata": {"resourceVersion": "1"}, "items": [{}]}',
        '{"metadata": {"resourceVersion": "1"}, "items": [5]}',
        '{"metadata": {}, "items": []}',
        '{"metadata": {"resourceVersion": 7}, "items": []}',
        "{}",
    ],
)
async def test_a_list_of_nonsense_is_a_fault(kubernetes: Cluster, proxy: Proxy, token: Path, text: str) -> None:
    kubeconfig = kubernetes.write_kubeconfig("proxy.conf", token_file=token, port=proxy.port)
    api = Api(Access(kubeconfig), "tests")
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
    proxy.answers = [(head + text).encode()]
    try:
        with pytest.raises(ApiFault):
            await api.list(NODE_MODULES)
    finally:
        await api.close()


async def test_a_token_that_was_replaced_is_read_again(kubernetes: Cluster, proxy: Proxy, token: Path) -> None:
    """Tokens of pods are replaced in their file; the server refuses the old one from some moment on."""
    kubeconfig = kubernetes.write_kubeconfig("proxy.conf", token_file=token, port=proxy.port)
    api = Api(Access(kubeconfig), "tests")
    good = await asyncio.to_thread(token.read_text)

    async def write(text: str) -> None:
        await asyncio.to_thread(token.write_text, text)

    await write("not-a-token")
    with pytest.raises(ApiFault) as refused:
        await api.list(NODE_MODULES)
    assert refused.value.code == client.UNAUTHORIZED
    await write(good)
    assert isinstance(await api.list(NODE_MODULES), Listing)
    await asyncio.to_thread(token.unlink)
    assert isinstance(await api.list(NODE_MODULES), Listing)  # the one that was read is still good
    await api.close()
    fresh = Api(Access(kubeconfig), "tests")
    with pytest.raises(ApiFault):
        await fresh.list(NODE_MODULES)
    await write(kubernetes.token("watcher"))
    assert isinstance(await fresh.list(NODE_MODULES), Listing)
    await fresh.close()


async def test_a_silent_server_is_given_up(
    kubernetes: Cluster, proxy: Proxy, token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection stands, and nothing comes: the watch ends at its deadline, and the next one goes on."""
    monkeypatch.setattr(client, "WATCH_SECONDS", (1, 1))
    monkeypatch.setattr(client, "GRACE", 0.5)
    (each,) = unique()
    kubeconfig = kubernetes.write_kubeconfig("proxy.conf", token_file=token, port=proxy.port)
    direct = Api(Access(kubernetes.kubeconfig), "tests")
    async with following(kubeconfig, **only(each)) as (_, reader):
        proxy.silent = True
        await make(direct, each)
        await asyncio.sleep(2)
        assert not reader.known
        proxy.silent = False
        await reader.until(lambda known: each in known)
    await direct.close()


async def test_a_watch_that_the_server_ends_is_no_trouble(kubernetes: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "WATCH_SECONDS", (1, 1))
    (each,) = unique()
    async with following(kubernetes.kubeconfig, **only(each)) as (api, reader):
        await asyncio.sleep(3.5)
        await make(api, each)
        await reader.until(lambda known: each in known)
        assert reader.listings == 1
        assert not [trouble for trouble in reader.troubles if trouble]


async def test_metadata_alone_is_asked_for_where_it_is_enough(kubernetes: Cluster) -> None:
    (each,) = unique()
    document = {"metadata": {"name": each}, "data": {"secret": "x" * 64}}
    api = Api(Access(kubernetes.kubeconfig), "tests")
    seen: list[Any] = []

    async def read() -> None:
        async with aclosing(api.follow(PODS_METADATA, fields={"metadata.name": each})) as events:
            async for event in events:
                seen.append(event)  # noqa: PERF401 - a comprehension would have it at the end alone

    task = asyncio.ensure_future(read())
    await api.create(PODS_METADATA, document, "default")
    deadline = asyncio.get_running_loop().time() + 10
    while not any(each in str(event) for event in seen):
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert "xxxx" not in str(seen)
    assert "xxxx" not in str(await api.list(PODS_METADATA, "default"))
    await api.close()


async def test_a_list_of_many_chunks_is_whole(kubernetes: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "CHUNK", 3)
    names = unique(10)
    api = Api(Access(kubernetes.kubeconfig), "tests")
    await make(api, *names)
    assert set(names) <= {name(item) for item in (await api.list(NODE_MODULES)).items}
    await api.close()


async def test_requests_fail_with_their_code(kubernetes: Cluster) -> None:
    (each,) = unique()
    api = Api(Access(kubernetes.kubeconfig), "tests")
    await make(api, each)
    with pytest.raises(ApiFault) as twice:
        await make(api, each)
    assert twice.value.code == CONFLICT
    document = await api.get(NODE_MODULES, each)
    await mark(api, each, "1")
    with pytest.raises(ApiFault) as stale:
        await api.replace(NODE_MODULES, document)
    assert stale.value.code == CONFLICT
    await api.patch(
        NODE_MODULES, each, [{"op": "add", "path": "/metadata/labels", "value": {"a": "b"}}], how=JSON_PATCH
    )
    applied = await api.apply(NODE_MODULES, each, {"status": {"bootID": "x"}}, status=True)
    assert applied["status"]["bootID"] == "x"
    await api.delete(NODE_MODULES, each)
    with pytest.raises(ApiFault) as missing:
        await api.delete(NODE_MODULES, each)
    assert missing.value.code == NOT_FOUND
    await api.close()


async def test_a_user_without_rights_is_forbidden(kubernetes: Cluster, tmp_path: Path) -> None:
    kubernetes.service_account("nobody-special")
    token = tmp_path / "token"
    token.write_text(kubernetes.token("nobody-special"))
    api = Api(Access(kubernetes.write_kubeconfig("forbidden.conf", token_file=token)), "tests")
    with pytest.raises(ApiFault) as refused:
        await api.list(NODE_MODULES)
    assert refused.value.code == FORBIDDEN
    assert "nobody-special" in refused.value.message
    await api.close()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "]",
        "a: b",
        "apiVersion: v1\nkind: Config\ncurrent-context: x\nclusters: []\ncontexts: []\nusers: []\n",
        "a: [",
        "- 1",
    ],
)
async def test_a_bad_kubeconfig_is_a_fault(tmp_path: Path, text: str) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    api = Api(Access(path), "tests")
    with pytest.raises(ApiFault):
        await api.get(NODE_MODULES, "x")
    await api.close()


def test_an_agent_at_rest_sends_at_most_twelve_requests_an_hour() -> None:
    """A watch and a status each time; tests/fleet/test_agent.py proves that there are no others."""
    assert 2 * 3600 / client.WATCH_SECONDS[0] <= 12


def test_waits_are_spread_and_bounded() -> None:
    assert client.wait(1, lambda: 1.0) <= client.SPREAD
    assert client.wait(50, lambda: 1.0) == client.SPREAD
    assert client.wait(50, lambda: 0.0) == 0
    assert client.wait(1, lambda: 0.0, retry_after=7.0) == 7.0
    assert client.wait(1, lambda: 0.0, retry_after=1e9) == client.RETRY_AFTER_MAX
