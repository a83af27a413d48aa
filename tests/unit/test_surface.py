# SPDX-License-Identifier: LGPL-2.1-or-later
"""Routes of the simulated kernel: what closes them, who goes them, and that the answer is of now."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from kmodd.core.planning.policy import succeeds
from kmodd.core.surface.kinds import is_hardware, kind_of
from kmodd.core.surface.service import Surfaces, exposure_of
from kmodd.core.surface.surface import closing, going
from kmodd.errors import ModuleTreeMissing, NoSuchModule
from kmodd.kernel.ports import ModuleIndex
from kmodd.kernel.simulated.kernel import SimulatedKernel
from kmodd.kernel.simulated.modules import SimulatedModule
from kmodd.kernel.simulated.reads import SimulatedInstalled
from kmodd.model import HealthStatus, Rule
from kmodd.model.surface import Exposure, Gate, Reach, Route, Surface, Tables
from kmodd.names import ModuleName
from kmodd.patterns import example

MODULES = (
    SimulatedModule("af_alg", aliases=("net-pf-38",)),
    SimulatedModule("algif_aead", depends=("af_alg",)),
    SimulatedModule("authencesn", aliases=("crypto-authencesn",)),
    SimulatedModule("vfat", depends=("fat",), aliases=("fs-vfat",)),
    SimulatedModule("fat"),
    SimulatedModule("e1000", aliases=("pci:v00008086d0000100Esv*sd*bc*sc*i*",)),
    SimulatedModule("softdog"),
    SimulatedModule("tun", aliases=("char-major-10-200", "devname:net/tun")),
    SimulatedModule("ext4", aliases=("fs-ext4",), builtin=True),
)


def rule(kind: str, module: str, value: str = "", line: int = 1) -> Rule:
    return Rule(kind, module, value, "/etc/modprobe.d/x.conf", line, f"{kind} {module} {value}".strip())


class Bench:
    """A kernel, and how often its surface was computed."""

    def __init__(self, *rules: Rule, loaded: tuple[str, ...] = ()) -> None:
        self.kernel = SimulatedKernel(MODULES, rules_in_force=rules, loaded=loaded, pace=0)
        self.computed = 0
        bench = self

        class Counted(SimulatedInstalled):
            @contextmanager
            def index(self, release: str, *, surface: bytes | None = None) -> Iterator[ModuleIndex]:
                bench.computed += 1
                with super().index(release, surface=surface) as index:
                    yield index

        self.installed = Counted(self.kernel.machine, self.kernel.index)
        self.surfaces = Surfaces(self.installed, self.kernel.loaded, self.kernel.facts)

    async def surface(self, kernel: str = "") -> Surface:
        answer = await self.surfaces.answer(kernel, 1000, lambda surface: surface)
        self.surfaces.close()
        return answer

    async def module(self, name: str) -> Exposure:
        return exposure_of(await self.surface(), ModuleName(name))


def direct(exposure: Exposure, request: str) -> Route:
    return next(route for route in exposure.routes if route.request == request and route.through is None)


@pytest.mark.parametrize(
    ("module", "reach"),
    [
        ("algif_aead", Reach.UNPRIVILEGED),
        ("authencesn", Reach.UNPRIVILEGED),
        ("vfat", Reach.USERNS),
        ("fat", Reach.USERNS),
        ("tun", Reach.UNPRIVILEGED),
        ("e1000", Reach.HARDWARE),
        ("softdog", Reach.ROOT),
    ],
)
async def test_reach_of_a_module_is_its_widest_open_route(module: str, reach: Reach) -> None:
    assert (await Bench().module(module)).reach is reach


async def test_what_needs_a_blocked_family_is_closed_unless_it_is_loaded() -> None:
    refused = rule("install", "af_alg", "/bin/false")
    exposure = await Bench(refused).module("algif_aead")
    route = direct(exposure, "algif-aead")
    assert (route.open, route.missing, exposure.reach) == (False, "net-pf-38", Reach.NONE)
    # The rule came too late: with the family loaded, the request is answered.
    bench = Bench(refused, loaded=("af_alg",))
    assert direct(await bench.module("authencesn"), "crypto-authencesn").missing == "algif-aead"
    bench = Bench(refused, loaded=("af_alg", "algif_aead"))
    assert direct(await bench.module("authencesn"), "crypto-authencesn").open


async def test_a_loaded_family_answers_although_its_alias_is_switched_off() -> None:
    off = rule("alias", "net_pf_38", "off")
    assert direct(await Bench(off).module("algif_aead"), "algif-aead").missing == "net-pf-38"
    assert direct(await Bench(off, loaded=("af_alg",)).module("algif_aead"), "algif-aead").open


async def test_a_dependency_is_reached_through_what_needs_it() -> None:
    exposure = await Bench().module("fat")
    assert [(route.request, route.through) for route in exposure.routes] == [("fs-vfat", "vfat"), ("fat", None)]
    assert (await Bench(rule("blacklist", "fat")).module("fat")).reach is Reach.USERNS
    assert (await Bench(rule("blacklist", "vfat")).module("fat")).reach is Reach.ROOT


async def test_a_command_counts_as_open_since_what_it_loads_is_not_known() -> None:
    exposure = await Bench(rule("install", "vfat", "logger x; modprobe -i vfat")).module("vfat")
    route = direct(exposure, "fs-vfat")
    assert route.open
    assert route.command is not None


async def test_a_closed_route_says_why() -> None:
    bench = Bench(rule("install", "vfat", "/bin/false", line=7))
    surface = await bench.surface()
    route = direct(exposure_of(surface, ModuleName("vfat")), "fs-vfat")
    assert closing(route, surface.tables) == "install rule /etc/modprobe.d/x.conf:7: install vfat /bin/false"
    assert going(route) == "any user in a user namespace who opens the file system type by fsopen(2)"
    bench = Bench()
    bench.installed.settings[Gate.USERNS_CLONE] = "0"
    surface = await bench.surface()
    route = direct(exposure_of(surface, ModuleName("vfat")), "fs-vfat")
    assert closing(route, surface.tables) == "kernel.unprivileged_userns_clone = 0: closed"
    assert closing(replace(route, open=True), surface.tables) == ""
    assert "net-pf-38 is needed first" in closing(replace(route, gate=None, missing="net-pf-38"), Tables())


async def test_another_program_than_modprobe_is_a_finding() -> None:
    bench = Bench()
    assert bench.surfaces.health() == []
    bench.installed.settings[Gate.MODPROBE] = ""
    assert bench.surfaces.health() == []  # an administrator's choice, which `kmodctl surface` shows
    bench.installed.settings[Gate.MODPROBE] = "/tmp/x"
    (check,) = bench.surfaces.health()
    assert check.status is HealthStatus.DEGRADED
    assert check.message == "The kernel runs /tmp/x as root for each module request, not modprobe."
    assert check.hint == "sysctl kernel.modprobe=/sbin/modprobe"


async def test_the_answer_is_kept_until_something_changed() -> None:
    bench = Bench()
    await bench.surfaces.answer("", 1000, lambda surface: surface)
    await bench.surfaces.answer("", 1001, lambda surface: surface)
    assert bench.computed == 1
    bench.installed.settings[Gate.LDISC_AUTOLOAD] = "0"
    await bench.surfaces.answer("", 1000, lambda surface: surface)
    assert bench.computed == 2
    bench.kernel.modprobe("vfat")
    after = await bench.surface()
    assert bench.computed == 3
    assert exposure_of(after, ModuleName("vfat")).loaded
    bench.kernel.change_rules(rule("install", "vfat", "/bin/false"))
    assert exposure_of(await bench.surface(), ModuleName("vfat")).reach is Reach.NONE


async def test_a_kernel_that_is_not_installed_and_a_module_that_is_not_there() -> None:
    bench = Bench()
    with pytest.raises(ModuleTreeMissing, match=r"no modules are installed for kernel 9\.9"):
        await bench.surface("9.9")
    with pytest.raises(NoSuchModule, match="part of the kernel image"):
        await bench.module("ext4")


async def test_first_comes_what_the_most_users_reach_and_nothing_uses() -> None:
    surface = await Bench(loaded=("af_alg",)).surface()
    order = [exposure.module for exposure in surface.exposures]
    assert order.index(ModuleName("algif_aead")) < order.index(ModuleName("af_alg")) < order.index(ModuleName("vfat"))
    assert order[-1] == "softdog"


@pytest.mark.parametrize(
    ("request_text", "kind"),
    [
        ("net-pf-33", "socket-family"),
        ("net-pf-2-proto-132", "socket-protocol"),
        ("net-pf-16-proto-6", "netlink-protocol"),
        ("net-pf-16-proto-16-family-wireguard", "generic-netlink"),
        ("net-pf-16-proto-4-type-2-132", "socket-diagnostics"),
        ("sch_fq", "traffic-control"),
        ("ipt_REJECT", "xtables"),
        ("ebtable_nat", "xtables"),
        ("ip_set_hash:ip", "ip-set"),
        ("tcp_cubic", ""),
        ("netdev-tunl0", ""),
        ("char-major-10-200", ""),
    ],
)
def test_the_form_of_a_request_says_what_it_is_for(request_text: str, kind: str) -> None:
    match = kind_of(request_text, (6, 1))
    assert (match[0].name if match else "") == kind


def test_execve_asks_for_no_module_since_linux_6_14() -> None:
    assert kind_of("binfmt-464c", (6, 12)) is not None
    assert kind_of("binfmt-464c", (6, 14)) is None


def test_aliases_of_devices() -> None:
    assert is_hardware("pci:v00008086d*")
    assert is_hardware("acpi*:PNP0C0C:*")
    assert not is_hardware("ip_set_hash:ip")
    assert not is_hardware("devname:fuse")
    assert example("usb:v0[1-3]*p?") == "usb:v010p0"


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("/bin/true", True),
        ("/bin/false", False),
        ("exit 1", False),
        ("exit 0", True),
        ("/bin/true; /bin/false", False),
        ("/bin/false || /bin/true", True),
        ("/bin/true || /bin/false", True),
        ("/bin/false && /bin/true", False),
        (":", True),
        ("exec /bin/false # never", False),
    ],
)
def test_how_a_refusal_ends(command: str, status: bool) -> None:
    assert succeeds(rule("install", "x", command)) is status
