# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every operation of the API, as its routes have it. The stream of events, which does not end, is apart."""

from typing import Any, cast

from fastapi.routing import APIRoute

from kmodd.gateway.routes import config, modules, store, surface, webhooks

_ABSENT = cast("Any", None)
"""What the routes call is not there: they are only listed."""
ROUTERS = (
    modules.changing_router(_ABSENT),
    modules.reading_router(_ABSENT, _ABSENT, _ABSENT),
    surface.router(_ABSENT, _ABSENT),
    webhooks.router(_ABSENT, _ABSENT),
    config.router(_ABSENT, _ABSENT),
    store.router(_ABSENT, _ABSENT),
)
OPERATIONS = sorted(
    {
        (method, route.path)
        for router in ROUTERS
        for route in router.routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    },
    key=lambda operation: (operation[1], operation[0]),
)
