# SPDX-License-Identifier: LGPL-2.1-or-later
"""org.kmodd1.Job: one object for each operation under way."""

from kmodd.bus.asked import LOAD, UNLOAD
from kmodd.bus.call import Call, StandardError, Target
from kmodd.bus.interfaces.parts import Job, Parts

_NEEDED = {"load": (LOAD,), "unload": (UNLOAD,)}


class JobInterface:
    """Members of org.kmodd1.Job."""

    interface = "org.kmodd1.Job"

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def cancel(self, target: Target) -> Call:
        job = self._job(target)
        details = {"modules": job.module, "action": "cancel"}
        if " " not in job.module:
            details["module"] = job.module
        # A reload or a batch may do both, so whoever stops it could have needed both.
        actions = _NEEDED.get(job.action, (LOAD, UNLOAD))
        return Call(lambda _: self._parts.jobs.cancel(job.id), details, actions, owner=job.sender)

    def action(self, target: Target) -> str:
        return self._job(target).action

    def module(self, target: Target) -> str:
        return self._job(target).module

    def state(self, target: Target) -> str:
        return self._job(target).state

    def started(self, target: Target) -> int:
        return self._job(target).started

    def sender(self, target: Target) -> str:
        return self._job(target).sender

    def progress(self, target: Target) -> float:
        return self._job(target).progress

    def _job(self, target: Target) -> Job:
        job = self._parts.jobs.get(int(target.label))
        if job is None:
            raise StandardError("UnknownObject", "the operation has ended")
        return job
