# SPDX-License-Identifier: LGPL-2.1-or-later
"""A rule of kmodd's counts as acting exactly where modprobe loads the module by no name, alias or dependent."""

from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from kmodd.core.surface.rule_file import RuleFileWriter, blocked_by, ineffective
from kmodd.kernel.modprobe.modprobe_d import parse_rules
from kmodd.kernel.modules.installed import InstalledIndexes
from kmodd.model import Verb
from kmodd.model.rules import ManagedFile
from kmodd.model.surface import Because, Decision, Reach
from kmodd.names import canonical
from kmodd.patterns import example
from tests.conformance import generate
from tests.conformance.oracle import Modprobe
from tests.conformance.run import MEMORY
from tests.conformance.scenario import Configuration, Question, build, configure
from tests.kernel.fakeroot import RELEASE

SEED = 41
TREES, CONFIGURATIONS = 5, 8
EARLIER = "etc/modprobe.d/00-a.conf"
FILE = ManagedFile.SURFACE.removeprefix("/")


def test_a_rule_acts_where_modprobe_refuses(program: tuple[str, ...], shim: Path) -> None:
    random = Random(SEED)  # noqa: S311 - tests are to be repeated
    differ: list[str] = []
    acting = undone = 0
    for _ in range(TREES):
        tree = generate.tree(random)
        with TemporaryDirectory(prefix="kmodd-surface-", dir=MEMORY) as folder:
            root, scratch = Path(folder) / "root", Path(folder) / "scratch"
            scratch.mkdir()
            build(tree, root)
            modprobe = Modprobe(program, shim, root, Path(folder) / "state", tree.needs())
            for _ in range(CONFIGURATIONS):
                files = dict(generate.configuration(random, tree).files)
                builtin = {canonical(each.name) for each in tree.modules if each.builtin}
                files_of = [each for each in tree.modules if canonical(each.name) not in builtin]
                blocked = sorted({canonical(each.name) for each in random.sample(files_of, 2)})
                if random.random() < 0.5:
                    # Another program's lines that are read before ours, about what is to be blocked.
                    line = random.choice(
                        ("softdep {0} pre: {1}", "install {0} /sbin/modprobe -i {0}", "softdep {0} pre:")
                    )
                    files[EARLIER] = (line.format(*blocked, *blocked),)
                configure(root, files)
                installed = InstalledIndexes(root, scratch=scratch)
                with installed.index(RELEASE, surface=b"") as index:
                    spellings = RuleFileWriter()
                    spellings.kernel(index, blocked)
                    requests = {
                        module: [
                            module,
                            *(example(alias) for alias in index.aliases(module)[:2]),
                            *(each.name for each in tree.modules if module in map(canonical, each.depends)),
                        ]
                        for module in blocked
                    }  # fmt: skip
                decisions = [Decision(module, True, Because.BLOCK, Reach.USERNS, "a test") for module in blocked]
                text = spellings.render(decisions)
                assert text is not None
                assert blocked_by(parse_rules(text, ManagedFile.SURFACE)) == set(blocked)
                with installed.index(RELEASE, surface=text) as index:
                    before = {fault.module: fault.message for fault in ineffective(index, RELEASE, blocked)}
                (root / FILE).parent.mkdir(parents=True, exist_ok=True)
                (root / FILE).write_bytes(text)
                with installed.index(RELEASE) as index:
                    faults = {fault.module: fault.message for fault in ineffective(index, RELEASE, blocked)}
                assert faults.keys() == before.keys(), "rules that are tried mean what they mean in their place"
                for module in blocked:
                    loaded = False
                    for request in requests[module]:
                        answer = modprobe.ask(Question(Verb.LOAD, request), Configuration(files))
                        loaded |= any(step.name == module and step.kind == "insert" for step in answer.steps)
                    acting += not loaded
                    undone += loaded
                    # Where another line runs a command in place of the module, what that loads is not known.
                    runs = any("install" in line for lines in files.values() for line in lines)
                    if loaded > (module in faults) or ((module in faults) > loaded and not runs):
                        differ.append(
                            f"{module}: modprobe loads it: {loaded}, kmodd: {faults}\n{files}\n{text!r}\n{tree}"
                        )
                (root / FILE).unlink()
    assert not differ, f"{len(differ)} of {acting + undone}\n" + "\n\n".join(differ[:3])
    assert acting > 40
    assert undone > 4
