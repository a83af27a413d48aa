# SPDX-License-Identifier: LGPL-2.1-or-later
"""The Kubernetes API: requests with typed errors, and a watch that loses nothing.

The only file that knows lightkube, which reads configurations and tokens, speaks TLS and decodes. What its watch (version 1.0.1)
gets wrong is cured here:

* it starts again after 410 without a list, so that deletions in between are lost: here a list comes first, and its reader is
  given the whole of it (`Listing`) to put in place of what it knew;
* a line that was cut off is decoded, and ends the program: here it ends the connection;
* U+0085 within a text, which Go does not escape, is taken for the end of a line: here it is escaped before;
* a connection whose other side vanished is waited for without end: here TCP asks every 30 seconds, and every watch has a deadline;
* a failed connection, and 429 with Retry-After, are raised: here they are tried again, each client at another moment;
* bookmarks are not requested, so that a quiet watch outlives its version: here they are.

Objects are plain JSON. Errors are `ApiFault`.
"""

import asyncio
import random
import re
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import msgspec
from lightkube import AsyncClient, KubeConfig
from lightkube.config.client_adapter import verify_cluster
from lightkube.core.exceptions import ApiError, ConfigError, NotReadyError
from lightkube.core.resource import ApiInfo
from lightkube.generic_resource import (
    GenericGlobalResource,
    GenericGlobalStatus,
    GenericNamespacedResource,
    GenericNamespacedStatus,
    create_api_info,
)
from lightkube.types import CascadeType, PatchType

from kmodd.fast_dataclass import dataclass
from kmodd.fleet.resources import GROUP, VERSION

WATCH_SECONDS = (600, 630)
"""Seconds after which the server is to end a watch, each time others between these. An agent at rest sends two requests for
each, the watch and a sign of life: at most twelve an hour."""
GRACE = 30.0
"""Seconds after that until a server that did not end it is given up."""
REQUEST_TIMEOUT = 20.0
SPREAD = 30.0
"""Seconds over which clients come back after an outage, and the longest wait between attempts."""
FIRST_WAIT = 1.0
RETRY_AFTER_MAX = 120.0
RETRIES = 3
"""Times that a request which the server put off (429, or 503 with Retry-After) is sent again."""
CHUNK = 500
"""Objects of one answer to a list."""
LINE_MAX = 4 << 20
"""Bytes of one line of a watch; an object in etcd has at most 1.5 MB."""
# The connection is probed after 30 seconds of silence and given up after three more attempts, or when 30 seconds of what was
# sent are not acknowledged.
_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
)
_ESCAPED = {b"\xc2\x85": b"\\u0085", b"\xe2\x80\xa8": b"\\u2028", b"\xe2\x80\xa9": b"\\u2029"}
"""What ends a line for str.splitlines, and is no control character that JSON escapes; it stands within texts alone."""
_SPECIAL = re.compile(b"|".join(_ESCAPED))
_METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"

GONE, CONFLICT, NOT_FOUND, UNAUTHORIZED, FORBIDDEN = 410, 409, 404, 401, 403
TOO_MANY, UNAVAILABLE, SERVER_ERROR = 429, 503, 500

MERGE, JSON_PATCH, APPLY = PatchType.MERGE, PatchType.JSON, PatchType.APPLY
"""How to patch; a strategic merge patch does not exist for custom resources."""

Object = dict[str, Any]
"""One object of the API, as JSON."""


class Kind(NamedTuple):
    """A kind of object."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool = False
    metadata_only: bool = False
    """Lists and watches answer the metadata alone."""


NODE_MODULES = Kind(GROUP, VERSION, "NodeModules", "nodemodules")
MODULE_SETS = Kind(GROUP, VERSION, "ModuleSet", "modulesets")


class ApiFault(Exception):
    """A request that failed."""

    def __init__(self, message: str, code: int = 0, *, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        """HTTP status; 0 where there was no answer."""
        self.retry_after = retry_after
        """Seconds the server wants to be left alone."""


class Listing(NamedTuple):
    """All objects there are: what is not among them is gone."""

    items: tuple[Object, ...]
    version: str


class Change(NamedTuple):
    """One object came, changed or went."""

    type: str
    """`ADDED`, `MODIFIED` or `DELETED`."""
    object: Object


@dataclass(frozen=True, slots=True)
class Access:
    """Where the API is and who we are there: a kubeconfig, or the service account of a pod."""

    kubeconfig: Path | None = None

    def read(self) -> KubeConfig:
        """Read the files; `ApiFault` for a bad one."""
        try:
            if self.kubeconfig is None:
                return KubeConfig.from_service_account()
            return KubeConfig.from_file(self.kubeconfig)
        except KeyError as error:
            raise ApiFault(f"the configuration of the Kubernetes API lacks {error}") from error
        except (ConfigError, OSError, ValueError, TypeError, msgspec.MsgspecError) as error:
            raise ApiFault(f"the configuration of the Kubernetes API is bad: {error}") from error
        except Exception as error:  # yaml's own errors share no other base class that can be imported here
            raise ApiFault("the configuration of the Kubernetes API is no YAML") from error


class Api:
    """One program's access to the API."""

    def __init__(
        self,
        access: Access,
        field_manager: str,
        *,
        user_agent: str = "kmodd",
        trouble: Callable[[ApiFault | None], None] = lambda _: None,
    ) -> None:
        """`trouble` is called with why a watch does not run, and with None each time that one is accepted."""
        self._access = access
        self._manager = field_manager
        self._agent = user_agent
        self.trouble = trouble
        self._client: AsyncClient | None = None
        self._former: AsyncClient | None = None
        self.requests = 0
        """Requests that were sent, for metrics and tests."""

    async def close(self) -> None:
        """End all connections."""
        clients, self._client, self._former = (self._client, self._former), None, None
        for client in clients:
            if client is not None:
                await client.close()

    async def _renew(self) -> None:
        """Read the configuration again before the next request; what is under way may go on until this is called again."""
        former, self._former, self._client = self._former, self._client, None
        if former is not None:
            await former.close()

    # --- requests ----------------------------------------------------------------------------------------------------

    async def get(self, kind: Kind, name: str, namespace: str | None = None) -> Object:
        """One object; `ApiFault` with NOT_FOUND."""
        client, res = self._parts(kind)
        return await self._object(lambda: client().get(res, name, **_in(kind, namespace)))

    async def list(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        labels: Mapping[str, str] | None = None,
        fields: Mapping[str, str] | None = None,
    ) -> Listing:
        """All objects, of every namespace where none is given."""
        client, res = self._parts(kind)

        async def collect() -> Listing:
            rows = client().list(
                res,
                chunk_size=CHUNK,
                labels=dict(labels) if labels else None,
                fields=dict(fields) if fields else None,
                **_in(kind, namespace or "*"),
            )
            items = tuple([dict(row) async for row in rows])
            version: object = rows.resourceVersion
            if not isinstance(version, str) or not all(isinstance(item.get("metadata"), dict) for item in items):
                raise ApiFault(_FOREIGN)
            return Listing(items, version)

        listing: Listing = await self._send(collect)
        return listing

    async def create(self, kind: Kind, document: Object, namespace: str | None = None) -> Object:
        """Create; `ApiFault` with CONFLICT where it is there."""
        client, res = self._parts(kind)
        return await self._object(lambda: client().create(res(document), **_in(kind, namespace)))

    async def replace(self, kind: Kind, document: Object, namespace: str | None = None) -> Object:
        """Replace; `ApiFault` with CONFLICT where its resourceVersion is not the present one."""
        client, res = self._parts(kind)
        return await self._object(lambda: client().replace(res(document), **_in(kind, namespace)))

    async def apply(
        self, kind: Kind, name: str, document: Object, namespace: str | None = None, *, status: bool = False
    ) -> Object:
        """Server-side apply as our field manager, by force; with `status`, of the status alone."""
        return await self.patch(kind, name, document, namespace, how=APPLY, status=status)

    async def patch(
        self,
        kind: Kind,
        name: str,
        document: Object | Sequence[Object],
        namespace: str | None = None,
        *,
        how: PatchType = MERGE,
        status: bool = False,
    ) -> Object:
        """Patch an object or its status: MERGE, JSON_PATCH or APPLY."""
        client, res = self._parts(kind)
        target = res.Status if status else res
        if how is APPLY and isinstance(document, dict):
            group = f"{kind.group}/{kind.version}" if kind.group else kind.version
            document = {"apiVersion": group, "kind": kind.kind, **document}
        force = how is APPLY
        return await self._object(
            lambda: client().patch(target, name, document, patch_type=how, force=force, **_in(kind, namespace))
        )

    async def delete(self, kind: Kind, name: str, namespace: str | None = None) -> None:
        """Delete; one that is not there is `ApiFault` with NOT_FOUND."""
        client, res = self._parts(kind)
        await self._send(lambda: client().delete(res, name, cascade=CascadeType.BACKGROUND, **_in(kind, namespace)))

    def _parts(self, kind: Kind) -> tuple[Callable[[], AsyncClient], Any]:
        return self._connected, _resource(kind)

    async def _object(self, request: Callable[[], Any]) -> Object:
        found = dict(await self._send(request))
        if not isinstance(found.get("metadata"), dict):
            raise ApiFault(_FOREIGN)
        return found

    async def _send(self, request: Callable[[], Any]) -> Any:
        for attempt in range(RETRIES + 1):
            try:
                return await request()
            except _FAULTS as error:
                fault = self._fault(error)
                if attempt == RETRIES or not fault.retry_after:
                    raise fault from error
            await asyncio.sleep(min(fault.retry_after, RETRY_AFTER_MAX) * random.uniform(1, 1.5))  # noqa: S311 - no secret
        raise AssertionError("unreachable")

    # --- watching ----------------------------------------------------------------------------------------------------

    async def follow(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        labels: Mapping[str, str] | None = None,
        fields: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[Listing | Change, None]:
        """What there is, and every change from then on, without end. A Listing may come again at any time and replaces all before.

        Failures are tried again by themselves; `trouble` of this Api hears of them. Close the iterator (`aclosing`).
        """
        version, failures = "", 0
        while True:
            began = time.monotonic()
            try:
                if not version:
                    listing = await self.list(kind, namespace, labels=labels, fields=fields)
                    version = listing.version
                    yield listing
                async with aclosing(self._watch(kind, namespace, labels, fields, version)) as changes:
                    async for change, seen in changes:
                        version = seen
                        failures = 0
                        if change is not None:
                            yield change
                # The server ended it, as requested, or because it ends itself.
                failures = 0
                if time.monotonic() - began < WATCH_SECONDS[0] - 1:
                    await asyncio.sleep(random.uniform(0, FIRST_WAIT))  # noqa: S311 - no secret
            except ApiFault as fault:
                if fault.code not in (0, UNAUTHORIZED, FORBIDDEN, TOO_MANY):
                    # 410, and also 504 where the version is newer than all that a restored etcd has.
                    version = ""
                failures += 1
                if fault.code != GONE:
                    self.trouble(fault)
                if fault.code in (0, UNAUTHORIZED):
                    # A new authority, token or address may be in the files.
                    await self._renew()
                await asyncio.sleep(wait(failures, random.random, fault.retry_after))

    async def _watch(
        self,
        kind: Kind,
        namespace: str | None,
        labels: Mapping[str, str] | None,
        fields: Mapping[str, str] | None,
        version: str,
    ) -> AsyncGenerator[tuple[Change | None, str], None]:
        seconds = random.randint(*WATCH_SECONDS)  # noqa: S311 - no secret
        reached = False
        deadline = asyncio.get_running_loop().time() + seconds + GRACE
        try:
            events: Any = self._connected().watch(
                _resource(kind),
                server_timeout=seconds,
                resource_version=version,
                labels=dict(labels) if labels else None,
                fields=dict(fields) if fields else None,
                **_in(kind, namespace or "*"),
            )
            async with aclosing(events) as stream:
                while True:
                    try:
                        # Around this alone: a time-out around the yield would end what the reader does.
                        async with asyncio.timeout_at(deadline):
                            type_, found = await anext(stream)
                    except _WatchEndedError:  # or lightkube would start over
                        return
                    if not isinstance(found.get("metadata"), dict):
                        raise ApiFault(_FOREIGN)
                    reached = True
                    version = str(found["metadata"].get("resourceVersion", "")) or version
                    yield (None if type_ == "BOOKMARK" else Change(type_, dict(found))), version
        except _FAULTS as error:
            fault = self._fault(error)
            if reached and fault.code == 0 and not fault.retry_after:
                return  # cut off in the middle: go on from what was seen last
            raise fault from error

    # --- inside ------------------------------------------------------------------------------------------------------

    def _connected(self) -> AsyncClient:
        if self._client is None:
            config = self._access.read().get()
            if config is None or config.user is None:
                raise ApiFault("the configuration of the Kubernetes API names no user")
            try:
                context = verify_cluster(config.cluster, config.user, config.abs_file, trust_env=False)
                transport = _Transport(self, context)
                self._client = AsyncClient(
                    config,
                    timeout=httpx2.Timeout(REQUEST_TIMEOUT),
                    field_manager=self._manager,
                    trust_env=False,
                    transport=transport,
                )
            except (ConfigError, OSError, ValueError) as error:  # ssl.SSLError is an OSError
                raise ApiFault(f"the configuration of the Kubernetes API is bad: {error}") from error
        return self._client

    @property
    def user_agent(self) -> str:
        """What the server's audit log calls us."""
        return self._agent

    def _fault(self, error: BaseException) -> ApiFault:
        if isinstance(error, ApiFault):
            return error
        if isinstance(error, httpx2.HTTPStatusError):
            response: httpx2.Response | None = error.response
            status = error.status if isinstance(error, ApiError) else None
            code = int((status.code if status else 0) or (response.status_code if response is not None else 0))
            text = (status.message if status else "") or f"the server answered status {code}"
            return ApiFault(text, code, retry_after=_retry_after(response, code))
        if isinstance(error, TimeoutError | httpx2.TimeoutException):
            return ApiFault("the Kubernetes API did not answer in time")
        if isinstance(error, msgspec.MsgspecError | KeyError | TypeError | ValueError | NotReadyError):
            return ApiFault(_FOREIGN)
        return ApiFault(f"the Kubernetes API cannot be reached: {str(error) or type(error).__name__}")


_FOREIGN = "the Kubernetes API answered something that is not its own"
# KeyError, TypeError, ValueError: lightkube reads headers and objects that the answer of a proxy may lack. RuntimeError: the client
# was closed by `_renew`.
_FAULTS = (
    httpx2.HTTPError,
    ConfigError,
    NotReadyError,
    OSError,
    msgspec.MsgspecError,
    KeyError,
    TypeError,
    ValueError,
    RuntimeError,
    ApiFault,
)


def wait(failures: int, chance: Callable[[], float], retry_after: float = 0.0) -> float:
    """Seconds until the next attempt after so many failures in a row (at least 1).

    Left to chance between nothing and a bound that doubles up to SPREAD: so all clients of a server that comes back after an
    outage are spread over these seconds.
    """
    bound = min(FIRST_WAIT * 2.0 ** min(max(failures, 1) - 1, 10), SPREAD)
    return min(retry_after, RETRY_AFTER_MAX) + bound * chance()


def _retry_after(response: httpx2.Response | None, code: int) -> float:
    text = response.headers.get("Retry-After", "") if response is not None else ""
    if code not in (TOO_MANY, UNAVAILABLE, SERVER_ERROR) or not text.isascii() or not text.isdigit():
        return 0.0
    return float(min(int(text), RETRY_AFTER_MAX))


class _WatchEndedError(Exception):
    """The server ended a watch in order."""


def _in(kind: Kind, namespace: str | None) -> dict[str, Any]:
    return {"namespace": namespace} if kind.namespaced else {}


_RESOURCES: dict[Kind, Any] = {}


def _resource(kind: Kind) -> Any:
    # Not by lightkube's own functions, which refuse kinds that its typed models name as well: here all are plain JSON.
    if kind not in _RESOURCES:
        info = create_api_info(kind.group, kind.version, kind.kind, kind.plural)
        status = ApiInfo(info.resource, kind.plural, ["get", "patch", "put"], parent=info.resource, action="status")
        bases: Any = (
            (GenericNamespacedResource, GenericNamespacedStatus)
            if kind.namespaced
            else (GenericGlobalResource, GenericGlobalStatus)
        )
        inner = type(f"{kind.kind}Status", (bases[1],), {"_api_info": status})
        _RESOURCES[kind] = type(kind.kind, (bases[0],), {"_api_info": info, "Status": inner, "_kmodd": kind})
    return _RESOURCES[kind]


def _metadata_only(path: str) -> bool:
    return any(kind.metadata_only and path.endswith(f"/{kind.plural}") for kind in _RESOURCES)


class _Transport(httpx2.AsyncHTTPTransport):
    """Connections that notice when the other side is gone, and watches in whole lines."""

    def __init__(self, api: Api, context: Any) -> None:
        super().__init__(verify=context, socket_options=_KEEPALIVE)
        self._api = api

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self._api.requests += 1
        request.headers["User-Agent"] = self._api.user_agent
        watch = request.url.params.get("watch") == "true"
        if request.method == "GET" and _metadata_only(request.url.path):
            request.headers["Accept"] = _METADATA if watch else _METADATA_LIST
        if not watch:
            return await super().handle_async_request(request)
        request.url = request.url.copy_set_param("allowWatchBookmarks", "true")
        # Lines are looked for in what arrives.
        request.headers["Accept-Encoding"] = "identity"
        response = await super().handle_async_request(request)
        if response.status_code < httpx2.codes.BAD_REQUEST:
            self._api.trouble(None)
            stream: Any = response.stream
            response.stream = _Lines(stream)
        return response


class _Lines(httpx2.AsyncByteStream):
    """A watch, a whole line at a time, in which nothing but the end of a line ends one."""

    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        rest = b""
        async for chunk in self._stream:
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > LINE_MAX:
                raise httpx2.ReadError("a line of the watch is too long")
            for line in lines:
                if line.strip():
                    yield _SPECIAL.sub(lambda match: _ESCAPED[match[0]], line) + b"\n"
        if rest:
            raise httpx2.ReadError("the watch was cut off within a line")
        raise _WatchEndedError

    async def aclose(self) -> None:
        await self._stream.aclose()
