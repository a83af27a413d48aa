# SPDX-License-Identifier: LGPL-2.1-or-later
"""Network interfaces of the module: driven by it, or of its link kind."""

from collections.abc import Callable, Iterator
from pathlib import Path

from kmodd.kernel.smallfile import listdir, read_text, readlink, shown
from kmodd.model import User
from kmodd.names import ModuleName, canonical

# What sysfs shows of a link's kind where rtnetlink cannot be asked: a file or folder of its own, by kind.
_SIGNS = {"bridge": "bridge", "bonding": "bond", "tun_flags": "tun"}


def interfaces(
    root: Path,
    name: ModuleName,
    resolve_alias: Callable[[str], tuple[str, ...]],
    kinds: Callable[[], dict[str, str]],
) -> Iterator[User]:
    """Interfaces of this network namespace, with driver or link kind (`ip link add … type KIND`) and state as detail."""
    folder = root / "sys/class/net"
    try:
        kind_of = kinds()
    except OSError:
        kind_of = {interface: _sign(folder / interface) for interface in listdir(folder)}
    owned: dict[str, bool] = {"": False}
    for interface in listdir(folder):
        state = read_text(folder / interface / "operstate") or "unknown"
        driver = readlink(folder / interface / "device/driver/module").rpartition("/")[2]
        kind = kind_of.get(interface, "")
        if kind not in owned:
            owned[kind] = canonical(kind) == name or name in resolve_alias(f"rtnl-link-{kind}")
        if driver and canonical(driver) == name:
            yield User("netdev", shown(interface), shown(f"driver {driver}, state {state}"))
        elif owned[kind]:
            yield User("netdev", shown(interface), shown(f"link kind {kind}, state {state}"))


def _sign(folder: Path) -> str:
    for line in (read_text(folder / "uevent") or "").splitlines():
        key, _, value = line.partition("=")
        if key == "DEVTYPE":
            return value
    return next((kind for sign, kind in _SIGNS.items() if (folder / sign).exists()), "")
