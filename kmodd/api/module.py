# SPDX-License-Identifier: LGPL-2.1-or-later
"""Properties of org.kmodd1.Module, one object for each loaded module, and of org.kmodd1.Job, one for each operation."""

from collections.abc import Mapping, Sequence

from kmodd.api import options
from kmodd.api import polkit_details as asked
from kmodd.api.polkit_details import LOAD, SET_PARAMETER, UNLOAD
from kmodd.api.services import Services
from kmodd.core.operations.jobs import Job
from kmodd.core.registry import origin
from kmodd.dbus.call import Call, StandardError, Target
from kmodd.errors import KmoddError
from kmodd.model import LoadedModule, ModuleInfo, Origin
from kmodd.names import ModuleName


class ModuleInterface:
    """Members of org.kmodd1.Module; what can change is read of the kernel each time, parameters apart."""

    interface = "org.kmodd1.Module"

    def __init__(self, services: Services) -> None:
        self._services = services

    def name(self, target: Target) -> str:
        return target.label

    def state(self, target: Target) -> str:
        return self._now(target).state.value

    def size(self, target: Target) -> int:
        return self._now(target).size

    def references(self, target: Target) -> int:
        return self._now(target).references

    def holders(self, target: Target) -> Sequence[str]:
        return self._now(target).holders

    def dependencies(self, target: Target) -> Sequence[str]:
        return self._services.index.dependencies(ModuleName(target.label))

    def parameters(self, target: Target) -> Mapping[str, str]:
        # Read before this is called, and never waited for here: what reads them is code of the module.
        values = self._services.values.known(ModuleName(target.label))
        return {
            parameter.name: parameter.value for parameter in values if parameter.public and parameter.value is not None
        }

    def taint(self, target: Target) -> str:
        return self._now(target).taint

    def version(self, target: Target) -> str:
        return self._attribute(target, "version")

    def source_version(self, target: Target) -> str:
        return self._attribute(target, "srcversion")

    def signer(self, target: Target) -> str:
        info = self._file(target)
        return info.signer if info is not None else ""

    def file_name(self, target: Target) -> str:
        return self._services.index.path(ModuleName(target.label))

    def loaded_at(self, target: Target) -> int:
        return self._services.registry.presence(ModuleName(target.label)).loaded_at

    def load_duration_usec(self, target: Target) -> int:
        return self._services.registry.presence(ModuleName(target.label)).load_duration_usec

    def origin(self, target: Target) -> str:
        module = self._now(target)
        return (Origin.STORE if self._services.activation.is_origin_of(module) else origin(module)).value

    def _now(self, target: Target) -> LoadedModule:
        module = self._services.loaded.read(ModuleName(target.label))
        if module is None:  # it went since the path was resolved, and the kernel's event is still on its way
            raise StandardError("UnknownObject", "the module is no longer loaded")
        return module

    def _attribute(self, target: Target, name: str) -> str:
        return self._services.loaded.attributes(ModuleName(target.label)).get(name, "")

    def _file(self, target: Target) -> ModuleInfo | None:
        try:
            return self._services.index.info(ModuleName(target.label))
        except KmoddError:  # no file any more, or none that can be read: nothing is known of it
            return None


_NEEDED = {
    "load": (LOAD,),
    "unload": (UNLOAD,),
    "reload": (LOAD, UNLOAD),
    "set-parameter": (SET_PARAMETER,),
    "reset-failed": (LOAD,),
}
_ANY = (LOAD, UNLOAD, SET_PARAMETER)


class JobInterface:
    """Members of org.kmodd1.Job."""

    interface = "org.kmodd1.Job"

    def __init__(self, services: Services) -> None:
        self._services = services

    def cancel(self, target: Target, values: options.Values) -> Call:
        job = self._job(target)
        details = {"modules": job.module, "action": "cancel", **asked.behalf(options.on_behalf_of(values))}
        if " " not in job.module:
            details["module"] = job.module
        # A batch may do all of it, so stopping it requires the authorization for all.
        actions = _NEEDED.get(job.action, _ANY)
        return Call(lambda _: self._services.jobs.cancel(job.id), details, actions, owner=job.sender)

    def action(self, target: Target) -> str:
        return self._job(target).action

    def module(self, target: Target) -> str:
        return self._job(target).module

    def state(self, target: Target) -> str:
        return self._job(target).state

    def started(self, target: Target) -> int:
        return self._job(target).started

    def sender(self, target: Target) -> str:
        # The bus tells everyone whose connection a unique name is, so it would say who is at work.
        sender = self._job(target).sender
        return sender if sender == target.asker else ""

    def progress(self, target: Target) -> float:
        return self._job(target).progress

    def _job(self, target: Target) -> Job:
        job = self._services.jobs.get(int(target.label))
        if job is None:
            raise StandardError("UnknownObject", "the operation has ended")
        return job
