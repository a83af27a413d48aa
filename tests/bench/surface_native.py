# SPDX-License-Identifier: LGPL-2.1-or-later
"""What rules about 2,000 modules cost a modprobe and kmodd's answers, and how long the strictest policy takes to apply: natively.

On the indexes of the virtual machine's kernel, with this machine's modprobe. Rounds with and without the rules take turns.
"""

import asyncio
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from kmodd.config.toml_file import DropIns
from kmodd.core.surface.enforcement import FILE, Enforcement
from kmodd.journal.reader import MemoryJournal
from kmodd.kernel.modprobe.modprobe_files import ConfigurationFolders
from kmodd.kernel.modules.index import LibkmodIndex
from kmodd.kernel.modules.installed import InstalledIndexes
from kmodd.kernel.proc.loaded import ProcModules
from kmodd.kernel.simulated.reads import SimulatedNeeds
from kmodd.model import Caller
from kmodd.names import ModuleName
from tests.conformance.answers import PlainFacts
from tests.conformance.oracle import build_shim
from tests.conformance.test_stock_kernel import Stock

RULES = 2000
ROUNDS = 40
MODULE = "virtio_net"
POLICY = """\
[surface]
mode = "enforce"
scope = ["unprivileged", "userns", "device", "hardware"]
"""
Work = Callable[[], object]


def _rules(modules: Sequence[str]) -> str:
    """As kmodd writes them, with a line more than most modules need."""
    others = [f"module_{number}" for number in range(RULES)]
    names = [name for name in (*modules, *others) if name not in (MODULE, "net_failover", "failover")][:RULES]
    return "".join(f"\nsoftdep {name} pre:\nblacklist {name}\ninstall {name} /bin/false\n" for name in names)


def _side_by_side(what: str, work: Work, change: Callable[[bool], None], aim: str) -> None:
    times: dict[bool, list[float]] = {False: [], True: []}
    for number in range(2 * ROUNDS):
        ruled = bool(number % 2)
        change(ruled)
        work()  # what changed is read again
        begin = time.perf_counter()
        work()
        times[ruled].append(time.perf_counter() - begin)
    without, ruled_ = (statistics.median(times[each]) * 1e3 for each in (False, True))
    print(f"  {what:<34} {without:7.2f} ms without, {ruled_:7.2f} ms with: {ruled_ - without:+.2f} ms   aim {aim}")


def main() -> None:
    """Print the rows."""
    with TemporaryDirectory() as place:
        stock = Stock(Path(place), build_shim(Path(place) / "shim"))
        root, file = stock.root, stock.root / FILE.removeprefix("/")
        (root / "proc").mkdir()
        (root / "proc/modules").write_text("")
        file.parent.mkdir(parents=True)
        text = _rules(stock.modules)
        print(f"Rules about {RULES} modules ({text.count(chr(10))} lines), kernel {stock.release}")

        def change(ruled: bool) -> None:
            file.write_text(text) if ruled else file.unlink(missing_ok=True)

        folder = str(root / "etc/modprobe.d")
        command = ["/sbin/modprobe", "-n", "-d", str(root), "-S", stock.release, "-C", folder, MODULE]

        def modprobe() -> None:
            subprocess.run(command, env=stock._environment, check=True)

        _side_by_side("modprobe -n", modprobe, change, "<= +3 ms")
        index = LibkmodIndex(root, stock.release)
        name = ModuleName(MODULE)

        def answer() -> None:
            index.refresh()
            for _ in range(100):
                index.resolve(name)
                index.rules(name)
                index.dependencies(name)

        _side_by_side("100 look-ups by kmodd", answer, change, "+0 ms")
        index.close()
        file.unlink(missing_ok=True)
        asyncio.run(_apply(stock, Path(place)))


async def _apply(stock: Stock, scratch: Path) -> None:
    root = stock.root
    (root / "etc/kmodd/surface.d").mkdir(parents=True)
    (root / "etc/kmodd/surface.d/10.toml").write_text(POLICY)
    journal, index = MemoryJournal(lambda: 0), LibkmodIndex(root, stock.release)
    enforcement = Enforcement(
        InstalledIndexes(root, scratch=scratch),
        SimulatedNeeds(),
        ConfigurationFolders(root, stock.release, memory=scratch),
        DropIns(root, "surface.d"),
        loaded=ProcModules(root),
        facts=PlainFacts("quiet"),
        index=index,
        history=journal,
        desired=tuple,
        audit=journal,
        clock=lambda: 0,
    )
    begin = time.perf_counter()
    plan = await enforcement.apply(Caller(":1.1", 0), weaken=False, dry_run=False, reason="")
    seconds = time.perf_counter() - begin
    index.close()
    print(f"  apply, which blocks {len(plan.block)} of {len(stock.modules)}      {seconds:7.2f} s   aim <= 2 s")


if __name__ == "__main__":
    main()
