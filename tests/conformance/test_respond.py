# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a response calls blocked, and what it calls open, is what modprobe does with every name and alias of the module."""

from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from kmodd.core.rules.managed_files import Entry, render
from kmodd.core.surface.vulnerabilities import REQUESTS_SHOWN, assess, placement, requests_of
from kmodd.kernel.modules.installed import InstalledIndexes
from kmodd.kernel.ports import Facts
from kmodd.model import KernelFacts, Verb
from kmodd.model.rules import ManagedFile
from kmodd.model.surface import Placement, Vulnerability
from kmodd.names import ModuleName, canonical
from tests.conformance import generate
from tests.conformance.oracle import Modprobe
from tests.conformance.run import MEMORY, refused_by_kernel
from tests.conformance.scenario import Configuration, Question, build, configure
from tests.kernel.fakeroot import RELEASE

SEED = 31
TREES, CONFIGURATIONS = 4, 8


class Here(Facts):
    """The facts of a root that is no running kernel's."""

    def __init__(self, command_line: str) -> None:
        self._command_line = command_line

    def read(self) -> KernelFacts:
        return KernelFacts(release=RELEASE, command_line=self._command_line)

    def taint_flags(self, taint: int) -> tuple[str, ...]:
        raise AssertionError("a root has no taint")

    def trusted_keys(self) -> tuple[str, ...]:
        raise AssertionError("a root has no keys")


def rules(module: ModuleName) -> tuple[str, ...]:
    """The lines that a response writes."""
    text = render(ManagedFile.BLACKLIST, {module: Entry(hard=True, reason="kmodctl respond CVE-2026-31431")})
    assert text is not None
    return tuple(text.decode().splitlines())


def test_blocked_is_what_modprobe_does_not_insert(program: tuple[str, ...], shim: Path) -> None:
    random = Random(SEED)  # noqa: S311 - tests are to be repeated
    differ: list[str] = []
    blocked = opened = 0
    for _ in range(TREES):
        tree = generate.tree(random)
        with TemporaryDirectory(prefix="kmodd-respond-", dir=MEMORY) as folder:
            root = Path(folder) / "root"
            build(tree, root)
            modprobe = Modprobe(program, shim, root, Path(folder) / "state", tree.needs())
            for number in range(CONFIGURATIONS):
                drawn = generate.configuration(random, tree)
                module = canonical(random.choice(tree.modules).name)
                # Every other time with the rules of a response; before or behind the administrator's, as the names have it.
                own = {ManagedFile.BLACKLIST.removeprefix("/"): rules(module)} if number % 2 else {}
                configuration = Configuration({**drawn.files, **own}, drawn.command_line)
                configure(root, configuration.files)
                record = Vulnerability("CVE-2026-31431", (module,))
                installed = InstalledIndexes(root, command_line=configuration.command_line)
                (report,) = assess(record, installed, Here(configuration.command_line))
                with installed.index(RELEASE) as index:
                    if placement(index, module) is not Placement.FILE:
                        continue
                    requests = requests_of(index, module, ())
                    commands = any(rule.kind == "install" and rule.value != "/bin/false" for rule in index.all_rules())
                inserting = []
                for request in requests:
                    answer = modprobe.ask(Question(Verb.LOAD, request), configuration, refused_by_kernel(configuration))
                    if any(step.kind == "insert" and canonical(step.name) == module for step in answer.steps):
                        inserting.append(request)
                blocked += report.blocked
                opened += not report.blocked
                told = report.open_requests.get(module, ())
                missing = set(inserting) - set(told) if len(told) < REQUESTS_SHOWN else set()
                # What a command loads is not known, and counts as loaded.
                if missing or (bool(told) != bool(inserting) and not commands):
                    differ.append(f"{module}: modprobe inserts for {inserting}, reported {told}\n{configuration}")
    assert not differ, f"{len(differ)}\n" + "\n\n".join(differ[:3])
    # With rules that never act, or none that is open, nothing would be proven.
    assert blocked > 4
    assert opened > 4
