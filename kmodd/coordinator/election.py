# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which replica works: the holder of a Lease of coordination.k8s.io, as other controllers of Kubernetes do it.

Only this machine's own clock is compared with itself: the times that stand in the Lease are for people. A candidate takes a Lease
over that did not change for as long as its duration says, counted from when this process saw it first. The holder stops writing
RENEW_DEADLINE after it *sent* the last renewal that succeeded, which is before any other may take over. The clock is
CLOCK_BOOTTIME, which continues while a machine is suspended and is not set by anyone.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from kmodd.errors import Unavailable
from kmodd.fleet.kubernetes import CONFLICT, NOT_FOUND, Api, ApiFault, Kind, Object

LEASES = Kind("coordination.k8s.io", "v1", "Lease", "leases", namespaced=True)

DURATION = 15
"""Seconds without renewal after which another replica takes the Lease over."""
RENEW_DEADLINE = 10.0
"""Seconds after the last renewal at which the holder stops to write."""
RETRY = 2.0
"""Seconds between attempts."""
REQUEST = 4.0
"""Seconds for one request: one that is sent right before the deadline ends before the Lease does."""


def boottime() -> float:
    """Seconds since the machine started, suspension included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Step(StrEnum):
    """What a candidate does next."""

    WAIT = "wait"
    CREATE = "create"
    TAKE = "take"
    RENEW = "renew"


@dataclass(slots=True)
class Election:
    """What one candidate knows; pure."""

    identity: str
    observed: tuple[str, str] = ("", "")
    """resourceVersion and holder of the Lease when it was seen last."""
    observed_at: float = 0.0
    duration: float = DURATION
    """Of the Lease that was seen last."""
    renewed_at: float = float("-inf")
    """When the last renewal that succeeded was sent."""

    def see(self, lease: Object | None, now: float) -> Step:
        """Take note of the Lease, or that there is none; what to do."""
        if lease is None:
            return Step.CREATE
        spec = lease.get("spec") or {}
        holder, seconds = spec.get("holderIdentity") or "", spec.get("leaseDurationSeconds")
        seen = (str(lease["metadata"].get("resourceVersion", "")), holder)
        if seen != self.observed:
            self.observed, self.observed_at = seen, now
            self.duration = float(seconds) if isinstance(seconds, int) and seconds > 0 else DURATION
        if holder == self.identity:
            return Step.RENEW
        if not holder or now - self.observed_at > self.duration:
            return Step.TAKE
        return Step.WAIT

    def renewed(self, lease: Object, sent: float) -> None:
        """A renewal that was sent then succeeded."""
        self.renewed_at = sent
        self.observed = (str(lease["metadata"].get("resourceVersion", "")), self.identity)
        self.observed_at = sent

    def lost(self) -> None:
        """Another replica has it."""
        self.renewed_at = float("-inf")

    def leading(self, now: float) -> bool:
        """Writes are allowed."""
        return now - self.renewed_at < RENEW_DEADLINE


def renewal(lease: Object | None, name: str, identity: str, time_: str) -> Object:
    """The Lease with this holder."""
    metadata: dict[str, Any] = {"name": name}
    spec: dict[str, Any] = {}
    if lease is not None:
        metadata = {"name": name, "resourceVersion": lease["metadata"]["resourceVersion"]}
        spec = dict(lease.get("spec") or {})
    taken = spec.get("holderIdentity") != identity
    spec |= {"holderIdentity": identity, "leaseDurationSeconds": DURATION, "renewTime": time_}
    if taken:
        spec |= {"acquireTime": time_, "leaseTransitions": int(spec.get("leaseTransitions") or 0) + (lease is not None)}
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}


class Leadership:
    """Keeps the Lease, or waits for it."""

    def __init__(
        self,
        api: Api,
        namespace: str,
        name: str,
        identity: str,
        *,
        clock: Callable[[], float] = boottime,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """The identity is this process's alone: a replica that starts again is another candidate."""
        self._api = api
        self._namespace = namespace
        self._name = name
        self._clock = clock
        self._sleep = sleep
        self.election = Election(identity)

    @property
    def leading(self) -> bool:
        """Writes are allowed now."""
        return self.election.leading(self._clock())

    async def acquire(self) -> None:
        """Wait until the Lease is ours."""
        while not await self._try():
            await self._sleep(RETRY * random.uniform(1, 1.2))  # noqa: S311 - no secret

    async def keep(self) -> None:
        """Renew it until it is lost, and return then."""
        while self.leading:
            await self._sleep(RETRY)
            await self._try()

    async def release(self) -> None:
        """Give it up, so that another replica need not wait."""
        if not self.leading:
            return
        try:
            async with asyncio.timeout(REQUEST):
                lease = await self._api.get(LEASES, self._name, self._namespace)
                if (lease.get("spec") or {}).get("holderIdentity") == self.election.identity:
                    given_up = renewal(lease, self._name, self.election.identity, _now())
                    given_up["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
                    await self._api.replace(LEASES, given_up, self._namespace)
        except (ApiFault, TimeoutError):
            return  # it ends by itself
        finally:
            self.election.lost()

    def require(self) -> None:
        """`Unavailable` where writes are not allowed any more."""
        if not self.leading:
            raise Unavailable("another replica has the lease")

    async def _try(self) -> bool:
        try:
            async with asyncio.timeout(REQUEST):
                return await self._attempt()
        except (ApiFault, TimeoutError):
            return False

    async def _attempt(self) -> bool:
        lease = await self._read()
        step = self.election.see(lease, self._clock())
        if step is Step.WAIT:
            self.election.lost()
            return False
        sent = self._clock()
        document = renewal(lease, self._name, self.election.identity, _now())
        try:
            if lease is None:
                answer = await self._api.create(LEASES, document, self._namespace)
            else:
                answer = await self._api.replace(LEASES, document, self._namespace)
        except ApiFault as fault:
            if fault.code == CONFLICT:
                return False  # another was faster; the next look says who
            raise
        self.election.renewed(answer, sent)
        return True

    async def _read(self) -> Object | None:
        try:
            return await self._api.get(LEASES, self._name, self._namespace)
        except ApiFault as fault:
            if fault.code == NOT_FOUND:
                return None
            raise


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
