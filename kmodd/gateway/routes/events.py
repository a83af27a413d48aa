# SPDX-License-Identifier: LGPL-2.1-or-later
"""`GET /v1/events`."""

from fastapi import APIRouter, Header, Request
from starlette.responses import Response

from kmodd.gateway.broadcast import Broadcaster, EventSubscription, EventSubscriptions
from kmodd.gateway.dependencies import documented, needs
from kmodd.gateway.http import event_stream
from kmodd.gateway.http.authentication import Authentication, Principal, Refused
from kmodd.gateway.http.event_stream import EventStream
from kmodd.gateway.http.middleware import CONNECTION
from kmodd.gateway.http.problem import HttpProblem
from kmodd.gateway.metrics import GatewayMetrics
from kmodd.gateway.settings import Limits


def router(
    hub: Broadcaster,
    counts: GatewayMetrics,
    authentication: Authentication,
    limits: Limits,
    heartbeat: float = event_stream.HEARTBEAT,
) -> APIRouter:
    """The route."""
    made = APIRouter(tags=["events"])
    followers = EventSubscriptions(limits.streams)

    @made.get("/v1/events", response_class=Response, operation_id="events", **documented("read"))
    async def events(
        request: Request,
        last_event_id: str = Header("", max_length=64, description="Continue after this event."),
        principal: Principal = needs("read"),
    ) -> Response:
        """Follow what happens, as Server-Sent Events.

        Kinds: `module-added`, `module-removed`, `module-changed`, `job-started`, `job-changed`, `job-finished`,
        `history-changed` (readable with the scope `read`), `health`, `manager-changed`, `configuration-changed`,
        `store-changed`, `daemon` (`running`, `gone`, `connected`, `disconnected`), `missed`. The first one is `hello`. When
        it says `"complete": false`, and after `missed` and after `daemon` with `connected`, things may have happened that
        were lost: read everything again. The newest 2,048 events can be caught up with by `Last-Event-ID`. A
        follower that does not keep up is dropped; it comes back with `Last-Event-ID`.
        """
        connection = request.scope[CONNECTION]
        follower = EventSubscription(principal.name, connection.abort)
        if not followers.enter(follower):
            counts.refused("streams")
            raise HttpProblem(503, f"there are already {limits.streams} event streams", {"Retry-After": "10"})

        async def allowed() -> bool:
            try:
                return (await authentication.principal(request.scope["headers"], connection.place.uid)).may("read")
            except Refused:
                return False

        def ended(reason: str) -> None:
            followers.leave(follower)
            counts.stream_ended(reason)

        connection.follow()
        counts.streams += 1
        return EventStream(
            hub,
            last_event_id,
            heartbeat=heartbeat,
            allowed=allowed,
            ended=ended,
            abort=connection.abort,
        )

    return made
