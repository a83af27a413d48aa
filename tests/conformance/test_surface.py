# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the attack surface counts as loaded by a request is what the kernel's call of modprobe inserts."""

from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from kmodd.core.surface.resolution import Resolution, Resolver
from kmodd.kernel.modules.index import LibkmodIndex
from kmodd.model import Verb
from tests.conformance import generate
from tests.conformance.oracle import Modprobe
from tests.conformance.run import MEMORY, refused_by_kernel
from tests.conformance.scenario import Configuration, Question, Tree, build, configure
from tests.kernel.fakeroot import RELEASE

SEED = 29
TREES, CONFIGURATIONS, REQUESTS = 12, 25, 4


def _requests(random: Random, tree: Tree, configuration: Configuration) -> list[str]:
    """Names and aliases, spelled as the kernel may."""
    asked = [generate.question(random, tree, configuration).name for _ in range(REQUESTS)]
    # By its own name, which `blacklist` does not act on, and by an alias, on which it does.
    asked.append(random.choice(tree.modules).name)
    aliases = [alias for module in tree.modules for alias in module.aliases]
    return [*asked, *(alias.replace("*", "0") for alias in aliases[:1])]


def _differs(loading: Resolution, inserted: list[str]) -> bool:
    """Where a command is run, what it loads is not known, and what needs its module counts as loaded."""
    if loading.commands:
        return not set(inserted) <= set(loading.inserted)
    return list(loading.inserted) != inserted


def test_what_a_request_loads_is_what_modprobe_inserts(program: tuple[str, ...], shim: Path) -> None:
    random = Random(SEED)  # noqa: S311 - tests are to be repeated
    differ: list[str] = []
    loads = refusals = asked = 0
    for _ in range(TREES):
        tree = generate.tree(random)
        with TemporaryDirectory(prefix="kmodd-surface-", dir=MEMORY) as folder:
            root = Path(folder) / "root"
            build(tree, root)
            modprobe = Modprobe(program, shim, root, Path(folder) / "state", tree.needs())
            for _ in range(CONFIGURATIONS):
                drawn = generate.configuration(random, tree)
                configuration = Configuration(drawn.files, drawn.command_line)
                configure(root, configuration.files)
                index = LibkmodIndex(root, RELEASE, command_line=configuration.command_line)
                resolver = Resolver(index, configuration.command_line)
                for request in _requests(random, tree, configuration):
                    answer = modprobe.ask(Question(Verb.LOAD, request), configuration, refused_by_kernel(configuration))
                    if answer.status < 0:
                        continue  # modprobe crashed
                    loading = resolver.load(request)
                    asked += 1
                    inserted = [step.name for step in answer.steps if step.kind == "insert"]
                    loads += bool(inserted)
                    refusals += bool(loading.rules) and not inserted
                    if _differs(loading, inserted):
                        differ.append(
                            f"{request!r}: modprobe {inserted}, kmodd {list(loading.inserted)}\n{configuration}\n{tree}"
                        )
                index.close()
    assert not differ, f"{len(differ)} of {asked}\n" + "\n\n".join(differ[:3])
    # A generator that asks only for what is loaded, or never is, proves nothing.
    assert loads > asked / 3
    assert refusals > asked / 50
