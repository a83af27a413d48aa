# SPDX-License-Identifier: LGPL-2.1-or-later
"""Selections, order, states and patterns of `ListModules`."""

import pytest

from kmodd.core.listing import Listing
from kmodd.core.planning.policy import Policy
from kmodd.errors import InvalidArgs
from kmodd.kernel.simulated.kernel import SimulatedKernel
from kmodd.model import Rule, State


def listing(kernel: SimulatedKernel, command_line: str = "") -> Listing:
    return Listing(kernel.loaded, kernel.index, Policy(kernel.index), command_line)


def test_loaded_is_what_the_kernel_lists_in_its_order() -> None:
    kernel = SimulatedKernel(pace=0)
    rows = listing(kernel).modules()
    assert [f"{row.name} " for row in rows] == [
        line.split()[0] + " " for line in kernel.loaded.raw().decode().splitlines()
    ]
    assert all(row.loaded is not None and row.state is State.LIVE for row in rows)


def test_available_leaves_out_what_is_loaded_and_says_what_is_forbidden() -> None:
    rows = listing(SimulatedKernel(pace=0)).modules("available")
    states = {row.name: row.state for row in rows}
    assert "ext4" not in states
    assert [name for name, state in states.items() if state is State.DISABLED] == ["dccp", "pcspkr"]
    assert list(states) == sorted(states)


def test_all_is_each_module_once_loaded_ones_first() -> None:
    kernel = SimulatedKernel(pace=0)
    rows = listing(kernel).modules("all")
    names = [row.name for row in rows]
    assert len(names) == len(set(names)) == len(kernel.machine.modules)
    loaded = len(listing(kernel).modules())
    assert all(row.loaded is None for row in rows[loaded:])
    assert names[loaded:] == sorted(names[loaded:])
    assert {row.name for row in rows if row.state is State.BUILTIN} == set(kernel.index.builtins())


def test_a_pattern_selects_by_canonical_name() -> None:
    kernel = SimulatedKernel(pace=0)
    assert {row.name for row in listing(kernel).modules("all", "snd-h*")} == {"snd_hda_intel", "snd_hda_codec_generic"}
    assert [row.name for row in listing(kernel).modules("builtin", "uni?")] == ["unix"]


@pytest.mark.parametrize("arguments", [("live", ""), ("all", "../x"), ("all", "x" * 65)])
def test_an_unknown_selection_or_a_bad_pattern_is_refused(arguments: tuple[str, str]) -> None:
    with pytest.raises(InvalidArgs):
        listing(SimulatedKernel(pace=0)).modules(*arguments)


def test_rules_are_read_again_when_they_change_and_an_alias_may_be_named() -> None:
    kernel = SimulatedKernel(pace=0)
    rows = listing(kernel, "ro module_blacklist=tun")
    assert rows.disabled() == {"dccp", "pcspkr", "tun"}
    kernel.change_rules(
        Rule("blacklist", "rtnl_link_veth", "", "/etc/modprobe.d/x.conf", 1, "blacklist rtnl-link-veth")
    )
    assert rows.disabled() == {"veth", "tun"}


def test_what_a_pattern_forbids_is_disabled() -> None:
    kernel = SimulatedKernel(pace=0)
    kernel.change_rules(Rule("install", "[^a-u]eth", "/bin/false", "/etc/modprobe.d/x.conf", 1, "install [^a-u]eth …"))
    assert listing(kernel).disabled() == {"veth"}
