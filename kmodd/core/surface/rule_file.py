# SPDX-License-Identifier: LGPL-2.1-or-later
"""The text of kmodd's rules about the attack surface, for good or on trial, and whether they act.

That is resolved as modprobe does, never read from the text. Rules on trial stand in a file in /run, which a reboot removes.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import PurePosixPath

from kmodd.core.planning.planned_state import has_soft_targets
from kmodd.core.planning.policy import is_denial
from kmodd.core.rules.managed_files import (
    NO_SOFTDEPS,
    REASON,
    REFUSAL,
    SURFACE_MARK,
    body_of,
    escaped,
    framed,
    is_intact,
    is_ours,
)
from kmodd.core.surface.resolution import Resolver
from kmodd.core.trial import in_utc
from kmodd.kernel.ports import ModuleIndex
from kmodd.model import Rule, Target
from kmodd.model.rules import ManagedFile
from kmodd.model.surface import Decision, Fault
from kmodd.names import ModuleName
from kmodd.patterns import example

TRIAL_FILE = ManagedFile.SURFACE_TRIAL
_UNTIL = re.compile(r"# On trial until [^\n(]{1,40} \((\d{1,18})\)\n")


class RuleFileWriter:
    """How modules are spelled by their files, and which have soft dependencies, over all kernels."""

    def __init__(self) -> None:
        self._files: dict[ModuleName, str] = {}
        self._soft: set[ModuleName] = set()

    def kernel(self, index: ModuleIndex, modules: Iterable[ModuleName]) -> None:
        """See how one kernel has them; the index is read without kmodd's own rules."""
        for module in modules:
            path = index.path(module)
            if path:
                # Scanners look for the name of the file: `usb-storage`.
                self._files[module] = PurePosixPath(path).name.partition(".")[0]
            if has_soft_targets(index, module):
                self._soft.add(module)

    def render(self, decisions: Iterable[Decision]) -> bytes | None:
        """The whole text; None where nothing is blocked."""
        blocks = [self._block(decision) for decision in decisions if decision.blocked]
        return framed("".join(blocks), SURFACE_MARK) if blocks else None

    def _block(self, decision: Decision) -> str:
        module = decision.module
        written = decision.rule.written if decision.rule is not None else ""
        name = self._files.get(module) or written or module
        # modprobe ignores the install line of a module with soft dependencies; of several softdep lines the first counts.
        softdep = f"softdep {name} {NO_SOFTDEPS}\n" if module in self._soft else ""
        return f"\n{REASON}{escaped(decision.detail)}\n{softdep}blacklist {name}\ninstall {name} {REFUSAL}\n"


def blocked_by(rules: Iterable[Rule]) -> frozenset[ModuleName]:
    """The modules that a text of ours keeps out, as it says."""
    return frozenset(ModuleName(rule.module) for rule in rules if (rule.kind, rule.value) == ("install", REFUSAL))


def is_surface_file(text: bytes) -> bool:
    """Tell whether kmodd wrote it as the rules about the attack surface."""
    return is_ours(text) and text.startswith(SURFACE_MARK.encode())


def ineffective(index: ModuleIndex, kernel: str, modules: Collection[ModuleName]) -> Iterator[Fault]:
    """Modules that modprobe loads all the same in a kernel: by name, by an alias, or for udev; with the line that is to blame."""
    resolver = Resolver(index, "")
    for module in sorted(modules):
        if not index.exists(module):
            continue
        if index.is_builtin(module):
            yield Fault(
                "builtin",
                f"{module} is part of the image of kernel {kernel}, and no rule keeps it out",
                module=module,
                kernel=kernel,
                hint="initcall_blacklist= on the kernel command line",
            )
            continue
        request = _loaded_by(resolver, index, module)
        if request:
            yield _fault(index, kernel, module, request)


def _loaded_by(resolver: Resolver, index: ModuleIndex, module: ModuleName) -> str:
    """A request that loads the module; empty if none does."""
    for request in (module, *map(example, index.aliases(module))):
        resolution = resolver.load(request)
        if module in resolution.inserted or module in resolution.commands:
            return request
    for alias in index.aliases(module)[:1]:
        resolution = resolver.by_alias(Target(module, alias))
        if module in resolution.inserted or module in resolution.commands:
            return alias
    return ""


def _fault(index: ModuleIndex, kernel: str, module: ModuleName, request: str) -> Fault:
    rule = _culprit(index, module)
    if rule is None:
        return Fault(
            "not-in-effect",
            f"modprobe still loads {module} by {request} in kernel {kernel}",
            module=module,
            kernel=kernel,
        )
    return Fault(
        "undone",
        f"modprobe still loads {module} by {request} in kernel {kernel}: {rule.file}, line {rule.line} is read first "
        f"({rule.told})",
        module=module,
        kernel=kernel,
        file=rule.file,
        line=rule.line,
        hint=f"change or remove the line in {rule.file}",
    )


def _culprit(index: ModuleIndex, module: ModuleName) -> Rule | None:
    """The line of another file that makes modprobe pass over ours."""
    own = {PurePosixPath(file).name for file in (ManagedFile.SURFACE, ManagedFile.SURFACE_TRIAL)}
    rules = index.rules(module)
    install = next((rule for rule in rules if rule.kind == "install"), None)
    softdep = next((rule for rule in rules if rule.kind == "softdep"), None)
    if install is not None and not is_denial(install) and PurePosixPath(install.file).name not in own:
        return install
    if has_soft_targets(index, module) and softdep is not None and PurePosixPath(softdep.file).name not in own:
        return softdep
    return None


def on_trial(text: bytes, until: int) -> bytes:
    """The rules of a text of kmodd's own, with the moment at which they end, in microseconds since the epoch."""
    return framed(f"# On trial until {in_utc(until)} ({until})\n{body_of(text).decode()}", SURFACE_MARK)


def without_trial(text: bytes) -> bytes:
    """The rules without an end, as they would have been written without a trial."""
    return framed(_UNTIL.sub("", body_of(text).decode(), count=1), SURFACE_MARK)


def trial_end(text: bytes) -> int:
    """When it ends; 0, which is past, for a text that is not as kmodd wrote it."""
    if not is_surface_file(text) or not is_intact(text):
        return 0
    stamp = _UNTIL.match(body_of(text).decode("utf-8", "replace"))
    return int(stamp.group(1)) if stamp else 0
