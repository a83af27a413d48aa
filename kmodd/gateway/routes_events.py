# SPDX-License-Identifier: LGPL-2.1-or-later
"""`GET /v1/events`."""

from fastapi import APIRouter, Header, Request
from starlette.responses import Response

from kmodd.gateway import event_stream
from kmodd.gateway.asking import needs, told
from kmodd.gateway.authentication import Authentication, Refused
from kmodd.gateway.counts import Counts
from kmodd.gateway.event_stream import EventStream
from kmodd.gateway.guard import CONNECTION
from kmodd.gateway.hub import Hub
from kmodd.gateway.principal import Principal
from kmodd.gateway.problem import HttpProblem
from kmodd.gateway.settings import Limits


def router(
    hub: Hub,
    counts: Counts,
    authentication: Authentication,
    limits: Limits,
    heartbeat: float = event_stream.HEARTBEAT,
) -> APIRouter:
    """The route."""
    made = APIRouter(tags=["events"])

    @made.get("/v1/events", response_class=Response, operation_id="events", **told("read"))
    async def events(
        request: Request,
        last_event_id: str = Header("", max_length=64, description="Go on after this event."),
        who: Principal = needs("read"),
    ) -> Response:
        """Follow what happens, as Server-Sent Events.

        Kinds: `module-added`, `module-removed`, `module-changed`, `job-started`, `job-changed`, `job-finished`,
        `history-changed` (somebody with `read` may look), `health`, `manager-changed`, `configuration-changed`,
        `store-changed`, `daemon` (`running`, `gone`, `connected`, `disconnected`), `missed`. The first one is `hello`. When
        it says `"complete": false`, and after `missed` and after `daemon` with `connected`, things may have happened that
        were not told: look at everything again. The newest 2,048 events can be caught up with by `Last-Event-ID`. A
        follower that does not keep up is dropped; it comes back with `Last-Event-ID`.
        """
        del who
        if counts.streams >= limits.streams:
            counts.refused("streams")
            raise HttpProblem(503, f"{limits.streams} follow the events already", {"Retry-After": "10"})

        async def allowed() -> bool:
            try:
                return (await authentication.principal(request.scope["headers"])).may("read")
            except Refused:
                return False

        connection = request.scope[CONNECTION]
        connection.follow()
        counts.streams += 1
        return EventStream(
            hub,
            last_event_id,
            heartbeat=heartbeat,
            allowed=allowed,
            ended=counts.stream_ended,
            abort=connection.abort,
        )

    return made
