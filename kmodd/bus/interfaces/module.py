# SPDX-License-Identifier: LGPL-2.1-or-later
"""org.kmodd1.Module: one object for each loaded module."""

from collections.abc import Mapping, Sequence

from kmodd.bus.call import StandardError, Target
from kmodd.bus.interfaces.parts import Parts
from kmodd.core.registry import origin
from kmodd.errors import KmoddError
from kmodd.model import LoadedModule, ModuleInfo, Origin
from kmodd.names import ModuleName


class ModuleInterface:
    """Members of org.kmodd1.Module; what can change is read of the kernel each time."""

    interface = "org.kmodd1.Module"

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

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
        return self._parts.index.dependencies(ModuleName(target.label))

    def parameters(self, target: Target) -> Mapping[str, str]:
        # The reader leaves the value of what only root may read out, and so does the answer, whoever asks.
        values = self._parts.loaded.parameters(ModuleName(target.label))
        return {one.name: one.value for one in values if one.public and one.value is not None}

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
        return self._parts.index.path(ModuleName(target.label))

    def loaded_at(self, target: Target) -> int:
        return self._parts.registry.presence(ModuleName(target.label)).loaded_at

    def load_duration_usec(self, target: Target) -> int:
        return self._parts.registry.presence(ModuleName(target.label)).load_duration_usec

    def origin(self, target: Target) -> str:
        module = self._now(target)
        return (Origin.STORE if self._parts.activation.is_origin_of(module) else origin(module)).value

    def _now(self, target: Target) -> LoadedModule:
        module = self._parts.loaded.read(ModuleName(target.label))
        if module is None:  # it went since the path was resolved, and the kernel's event is still on its way
            raise StandardError("UnknownObject", "the module is not loaded any more")
        return module

    def _attribute(self, target: Target, name: str) -> str:
        return self._parts.loaded.attributes(ModuleName(target.label)).get(name, "")

    def _file(self, target: Target) -> ModuleInfo | None:
        try:
            return self._parts.index.info(ModuleName(target.label))
        except KmoddError:  # no file any more, or none that can be read: nothing is known of it
            return None
