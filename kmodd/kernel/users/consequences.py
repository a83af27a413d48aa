# SPDX-License-Identifier: LGPL-2.1-or-later
"""What goes with modules when they are removed: interfaces in every network namespace, and devices of their drivers.

None of it holds a reference: the kernel removes the interfaces of a link kind with the kind (rtnl_link_unregister), unbinds
the devices of a driver with the driver (bus_remove_driver), and removes everything below them.
"""

import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from kmodd.fast_dataclass import dataclass
from kmodd.kernel.files import is_folder, listdir, read_text, readlink
from kmodd.kernel.modules.alias_text import AliasText
from kmodd.kernel.users.devices import DeviceOwners, device_number
from kmodd.kernel.users.mount import Mount, Mounts
from kmodd.kernel.users.rtnetlink import Link, Rtnetlink
from kmodd.kernel.users.tasks import Budget, Limits, NamespaceOwner, Tasks, namespace_owner
from kmodd.model.reports import Consequence, ConsequenceKind
from kmodd.names import canonical
from kmodd.text import shown

Sighting = tuple[str, Consequence]
"""A module, and what goes with it."""

_AUTOMATIC = frozenset(
    {"erspan0", "gre0", "gretap0", "ip6_vti0", "ip6gre0", "ip6tnl0", "ip_vti0", "sit0", "tunl0"},
)
"""Made in every network namespace by ip_tunnel_init_net and its like (net/ipv4, net/ipv6), unless net.core.fb_tunnels_only_for_init_net."""
_KINDS_WITHOUT_ALIAS = frozenset({"tun"})
"""Modules of link kinds that have no alias rtnl-link-KIND."""
_FOLDERS_MAX = 8192
"""Folders of /sys below the devices of one module that are looked at."""
_ROWS_MAX = 64
"""Things of one module that are named."""
_INPUT_BY_PEOPLE = 0x2E
"""EV_KEY, EV_REL, EV_ABS and EV_SW (linux/input-event-codes.h); what else there is makes sounds and lights."""
_SECTOR_WRITES = 4
"""Place in /sys/block/DISK/stat of the writes (Documentation/block/stat.rst)."""
_MOUNT_NAMES = 3
LIMITS = Limits(seconds=5.0, mount_share=0.75)
"""More time than for users: what is not found out in it takes `disconnect` to be removed."""
_FILE_MAX = 1 << 16
_NETNS_FOLDERS = ("/run/netns/", "/var/run/netns/")


@dataclass(frozen=True, slots=True)
class _Namespace:
    """A network namespace beside the system's own."""

    link: str
    """`net:[4026532281]`."""
    path: str
    """What to open for a descriptor of it."""
    label: str
    owner: int


class Consequences:
    """One search in the /proc and /sys below `root` for what goes with these modules.

    Nothing is opened but small files of /proc, /sys and /run/udev, mount tables, and network namespaces (which are not entered).
    """

    def __init__(
        self,
        root: Path,
        modules: Collection[str],
        aliases: AliasText,
        budget: Budget,
        *,
        netlink: Callable[[], Rtnetlink] = Rtnetlink,
        owner: NamespaceOwner = namespace_owner,
    ) -> None:
        """`modules` are canonical names; `netlink` makes a socket for questions about interfaces."""
        self._root = root
        self._modules = frozenset(modules)
        self._aliases = aliases
        self._budget = budget
        self._netlink = netlink
        self._tasks = Tasks(root, budget, owner)
        self._mounts = Mounts(self._tasks, lambda _: frozenset(), budget)
        self._closed = 0
        """Processes whose network namespace may not be known."""
        self._bound = {name: tuple(_bound_devices(root, name)) for name in self._modules}

    def search(self) -> Iterator[Sighting]:
        """Everything once for each module; an additional row states what is unknown."""
        seen: set[Sighting] = set()
        counts: dict[str, int] = {}
        for module, row in self._all():
            if (module, row) in seen:
                continue
            seen.add((module, row))
            counts[module] = counts.get(module, 0) + 1
            if counts[module] <= _ROWS_MAX or (row.live and counts[module] <= 2 * _ROWS_MAX):
                yield module, row

    def _all(self) -> Iterator[Sighting]:
        yield from self._interfaces()
        yield from self._consoles()
        yield from self._disks()
        for module, devices in self._bound.items():
            for driver, device in devices:
                yield from ((module, row) for row in self._below(driver, device))

    # --- interfaces ---------------------------------------------------------------------------------------------------

    def _interfaces(self) -> Iterator[Sighting]:
        failed: list[str] = []
        try:
            netlink = self._netlink()
        except OSError as error:
            failed.append(f"network interfaces cannot be listed ({error.strerror})")
        else:
            with closing(netlink):
                try:
                    yield from self._own_interfaces(netlink)
                except OSError as error:
                    failed.append(f"network interfaces cannot be listed ({error.strerror})")
                unseen = 0
                # Reads the namespace of every process: not needed for modules without a kind of link or a bound device.
                elsewhere = self._link_modules or any(self._bound.values()) or not self._aliases.readable
                for namespace in self._namespaces() if elsewhere else ():
                    try:
                        links = self._links_of(netlink, namespace)
                    except (FileNotFoundError, ProcessLookupError):
                        continue  # gone meanwhile, with its interfaces
                    except OSError:
                        unseen += 1
                        continue
                    for link in links:
                        for module in self._modules_of(link):
                            yield module, _interface(link, namespace)
                    if not self._budget.in_time():
                        break
                if self._closed:
                    counted = "1 process" if self._closed == 1 else f"{self._closed} processes"
                    failed.append(f"the network namespace of {counted} cannot be determined")
                if unseen:
                    counted = "1 network namespace" if unseen == 1 else f"{unseen} network namespaces"
                    failed.append(f"the interfaces of {counted} cannot be listed")
        if self._budget.partial:
            failed.append(self._budget.partial)
        if failed:
            unknown = Consequence(ConsequenceKind.UNKNOWN, "", detail=", ".join(failed))
            yield from ((module, unknown) for module in sorted(self._link_modules))

    def _own_interfaces(self, netlink: Rtnetlink) -> Iterator[Sighting]:
        links = {link.index: link for link in netlink.links()}
        concerned = {index: modules for index, link in links.items() if (modules := self._modules_of(link))}
        if not concerned:
            return
        addresses, routes = netlink.addresses(), netlink.default_routes()
        for index, modules in concerned.items():
            above = _stacked_on(index, links)
            own_addresses = (address for each in (index, *above) for address in addresses.get(each, ()))
            row = replace(
                _interface(links[index]),
                addresses=tuple(address for address in dict.fromkeys(own_addresses) if not address.startswith("fe80:")),
                default_route=not routes.isdisjoint((index, *above)),
                carries=tuple(shown(links[each].name) for each in above),
                ports=tuple(shown(link.name) for link in links.values() if link.master == index),
            )
            yield from ((module, row) for module in modules)

    def _links_of(self, netlink: Rtnetlink, namespace: _Namespace) -> tuple[Link, ...]:
        opened = os.open(namespace.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return netlink.links(netlink.namespace_id(opened))
        finally:
            os.close(opened)

    def _modules_of(self, link: Link) -> tuple[str, ...]:
        modules = {name for name in self._kind_modules(link.kind) if name in self._modules} if link.kind else set()
        if link.device:
            place = (self._root / "sys/bus" / link.bus / "devices" / link.device).resolve()
        elif not link.kind:
            place = (self._root / "sys/class/net" / link.name / "device").resolve()
        else:
            return tuple(sorted(modules))
        for module, devices in self._bound.items():
            if any(place.is_relative_to(device) for _, device in devices):
                modules.add(module)
        return tuple(sorted(modules))

    def _kind_modules(self, kind: str) -> tuple[str, ...]:
        name = canonical(kind)
        if "/" not in name and (self._root / "sys/module" / name / "initstate").exists():
            return (name,)
        return self._aliases(f"rtnl-link-{kind}")

    @cached_property
    def _link_modules(self) -> frozenset[str]:
        """Those of the modules that have their own interfaces, as far as known without seeing one."""
        return self._modules & (self._aliases.modules("rtnl-link-") | _KINDS_WITHOUT_ALIAS)

    def _namespaces(self) -> Iterable[_Namespace]:
        """Every network namespace that a process is in or that is mounted, but the system's own."""
        own = readlink(self._root / "proc/self/ns/net")
        namespaces: dict[str, _Namespace] = {}
        for mount in self._mounts.of_type("nsfs"):
            link = mount.root
            if link.startswith("net:[") and link not in namespaces:
                path = f"{self._root}/proc/{mount.task.pid}/root{mount.point}"
                owner = 0 if mount.task.pid == 1 else mount.task.uid
                namespaces[link] = _Namespace(link, path.replace("//", "/"), _label(mount), owner)
        processes = f"{self._root}/proc"
        for task in self._tasks.all:
            if task.pid == 1:
                continue  # the machine's own namespace is that of the first process, and this one's
            path = f"{processes}/{task.pid}/ns/net"
            try:
                link = os.readlink(path)  # noqa: PTH115 - the plain text, thousands of times
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended
            except OSError:
                self._closed += 1
                continue
            if link not in namespaces:
                namespaces[link] = _Namespace(link, path, f"pid {task.pid}", task.uid)
        namespaces.pop(own, None)
        return namespaces.values()

    # --- what hangs on a driver ---------------------------------------------------------------------------------------

    def _below(self, driver: str, device: Path) -> Iterator[Consequence]:
        """What is at or below a bound device; the device itself where nothing is that says whether it is in use."""
        known = any(place.is_relative_to(device) for place in self._interface_places)
        # Links are not followed: they lead out.
        for number, (folder, _, _) in enumerate(os.walk(device)):
            if number == _FOLDERS_MAX or not self._budget.in_time():
                detail = f"not everything below {shown(device.name)} was examined"
                yield Consequence(ConsequenceKind.UNKNOWN, "", detail=detail)
                return
            for row in self._of_class(readlink(f"{folder}/subsystem").rpartition("/")[2], Path(folder)):
                known = True
                yield row
        if not known:
            yield Consequence(ConsequenceKind.DEVICE, shown(device.name), detail=shown(driver))

    @cached_property
    def _interface_places(self) -> tuple[Path, ...]:
        """Where the devices are that have an interface in this network namespace: others' are no business of /sys."""
        devices = [self._root / "sys/class/net" / name / "device" for name in listdir(self._root / "sys/class/net")]
        return tuple(device.resolve() for device in devices if device.exists())

    def _of_class(self, subsystem: str, folder: Path) -> Iterator[Consequence]:
        name = folder.name
        match subsystem:
            case "block" if not (folder / "partition").exists():
                yield from self._disk(name, folder)
            case "input" if name.startswith("input"):
                label = shown(read_text(folder / "name") or "")
                used = _hexadecimal(read_text(folder / "capabilities/ev")) & _INPUT_BY_PEOPLE
                yield Consequence(ConsequenceKind.INPUT, name, detail=label, uses=("is attached",) if used else ())
            case "drm" if read_text(folder / "enabled") is not None:
                used = read_text(folder / "enabled") != "disabled" and read_text(folder / "status") != "disconnected"
                yield Consequence(ConsequenceKind.SCREEN, shown(name), uses=("shows a picture",) if used else ())
            case "graphics" if name.startswith("fb"):
                used = name in self._console_frame_buffers
                yield Consequence(ConsequenceKind.SCREEN, shown(name), uses=("shows the console",) if used else ())
            case "tty":
                console = read_text(folder / "dev") in self._console_numbers
                kind = ConsequenceKind.CONSOLE if console else ConsequenceKind.SERIAL
                yield Consequence(kind, f"/dev/{shown(name)}", uses=("is a console",) if console else ())
            case "sound" if name.startswith("card"):
                yield Consequence(ConsequenceKind.SOUND, name, detail=shown(read_text(folder / "id") or ""))
            case "watchdog":
                active = read_text(folder / "state") != "inactive"
                yield Consequence(ConsequenceKind.WATCHDOG, f"/dev/{name}", uses=("is active",) if active else ())

    @cached_property
    def _console_frame_buffers(self) -> frozenset[str]:
        consoles = self._root / "sys/class/vtconsole"
        bound = any(
            "frame buffer" in (read_text(consoles / name / "name") or "") and read_text(consoles / name / "bind") == "1"
            for name in listdir(consoles)
        )
        return frozenset(listdir(self._root / "sys/class/graphics")) if bound else frozenset()

    # --- disks --------------------------------------------------------------------------------------------------------

    def _disk(self, name: str, folder: Path) -> Iterator[Consequence]:
        if _decimal(read_text(folder / "size")) == 0:
            return  # no medium, or nothing behind it
        parts = [part for part in listdir(folder) if (folder / part / "partition").exists()]
        uses: dict[str, None] = {}
        for part, place in ((name, folder), *((part, folder / part) for part in parts)):
            uses |= dict.fromkeys(self._uses_of(part, place))
        if parts and not uses:
            uses["has partitions"] = None
        yield Consequence(ConsequenceKind.DISK, f"/dev/{shown(name.replace('!', '/'))}", uses=tuple(uses))

    def _uses_of(self, name: str, folder: Path) -> Iterator[str]:
        number = read_text(folder / "dev") or ""
        mounts = [mount for mount in self._mounts.all if mount.device == number]
        points = [shown(mount.point) for mount in mounts if mount.task.pid == 1]
        if points:
            yield f"is mounted at {', '.join(points[:_MOUNT_NAMES])}"
        elif mounts:
            yield "is mounted in another mount namespace"
        if f"/dev/{name}" in self._swaps:
            yield "is used as swap"
        holders = listdir(folder / "holders")
        if holders:
            yield f"is part of /dev/{shown(holders[0])}"
        if not points and not mounts and not holders:
            yield from self._content_of(folder, number)

    def _content_of(self, folder: Path, number: str) -> Iterator[str]:
        """What udev found on it (systemd's 60-persistent-storage.rules); of a disk in memory, whether anything was written."""
        if folder.is_relative_to(self._root.resolve() / "sys/devices/virtual"):
            if (folder / "pid").exists():
                yield "is connected"
                return
            # brd counts its pages (drivers/block/brd.c) and not what is written; others do the opposite.
            pages = read_text(self._root / "sys/kernel/debug/ramdisk_pages" / folder.name)
            if pages is None and read_text(folder / "queue/iostats") != "1":
                yield "may hold data in memory"
            elif _decimal(pages) if pages is not None else self._is_written(folder):
                yield "holds data in memory"
            return
        properties = read_text(self._root / "run/udev/data" / f"b{number}", _FILE_MAX)
        if properties is None:
            yield "may hold data"
            return
        udev = dict(line[2:].split("=", 1) for line in properties.splitlines() if line.startswith("E:") and "=" in line)
        if kind := udev.get("ID_FS_TYPE") or udev.get("ID_PART_TABLE_TYPE"):
            yield f"holds {shown(kind)}"

    def _is_written(self, folder: Path) -> bool:
        return _decimal((read_text(folder / "stat") or "").split(), _SECTOR_WRITES) > 0

    def _disks(self) -> Iterator[Sighting]:
        """Disks by their numbers: those without a device behind them (brd, zram, null_blk, nbd), and those of a SCSI host."""
        block = f"{self._root}/sys/block"
        owners = DeviceOwners(self._root, self._aliases, self._modules)
        for name in listdir(block):
            number = device_number(read_text(f"{block}/{name}/dev"))
            for module in owners.modules("block", *number) if number is not None else ():
                yield from ((module, row) for row in self._disk(name, Path(block, name).resolve()))

    @cached_property
    def _swaps(self) -> frozenset[str]:
        lines = (read_text(self._root / "proc/swaps", _FILE_MAX) or "").splitlines()[1:]
        return frozenset(line.split()[0] for line in lines if line.strip())

    # --- consoles -----------------------------------------------------------------------------------------------------

    @cached_property
    def _console_lines(self) -> tuple[tuple[str, str], ...]:
        """(name, `major:minor` or nothing) of each console (Documentation/filesystems/proc.rst, /proc/consoles)."""
        rows = [line.split() for line in (read_text(self._root / "proc/consoles", _FILE_MAX) or "").splitlines()]
        return tuple((row[0], row[-1] if ":" in row[-1] else "") for row in rows if row)

    @cached_property
    def _console_numbers(self) -> frozenset[str]:
        return frozenset(number for _, number in self._console_lines if number)

    def _consoles(self) -> Iterator[Sighting]:
        """Consoles that no device stands behind: netconsole's."""
        for name, _ in self._console_lines:
            if name.startswith("netcon") and "netconsole" in self._modules:
                yield "netconsole", Consequence(ConsequenceKind.CONSOLE, shown(name), uses=("is a console",))


def _bound_devices(root: Path, module: str) -> Iterator[tuple[str, Path]]:
    """(driver, device's folder) of each device that is bound to a driver of the module."""
    drivers = f"{root}/sys/module/{module}/drivers"
    entries = [(entry.partition(":")[2], f"{drivers}/{entry}") for entry in listdir(drivers)]
    # What registers a driver without saying whose it is (button, scsi_debug) is known by the driver's name.
    for bus in listdir(f"{root}/sys/bus"):
        for name in {module, module.replace("_", "-")}:
            folder = f"{root}/sys/bus/{bus}/drivers/{name}"
            if is_folder(folder) and not readlink(f"{folder}/module"):
                entries.append((name, folder))
    for driver, folder in entries:
        for device in listdir(folder):
            # Links to devices stand beside `module` and the attributes bind, unbind, uevent.
            if device != "module" and readlink(f"{folder}/{device}"):
                yield driver, Path(folder, device).resolve()


def _interface(link: Link, namespace: _Namespace | None = None) -> Consequence:
    if namespace is None:
        return Consequence(ConsequenceKind.INTERFACE, shown(link.name), up=link.up)
    return Consequence(
        ConsequenceKind.INTERFACE,
        shown(link.name),
        up=link.up,
        netns=namespace.label,
        automatic=link.name in _AUTOMATIC,
        owner=namespace.owner,
    )


def _stacked_on(index: int, links: dict[int, Link]) -> tuple[int, ...]:
    """What goes over an interface: its bridge or bond, its VLANs, and what is stacked on those; nearest first."""
    names: dict[int, None] = {}
    queue = [index]
    while queue:
        below = queue.pop(0)
        master = links[below].master
        above = [link.index for link in links.values() if link.lower == below and link.kind != "veth"]
        for each in ([master] if master in links else []) + above:
            if each != index and each not in names:
                names[each] = None
                queue.append(each)
    return tuple(names)


def _label(mount: Mount) -> str:
    for folder in _NETNS_FOLDERS:
        if mount.point.startswith(folder):
            return shown(mount.point.removeprefix(folder))
    return shown(mount.point)


def _hexadecimal(text: str | None) -> int:
    try:
        # Several words for bits above 63: the lowest is the last.
        return int((text or "").split()[-1], 16)
    except (ValueError, IndexError):
        return -1  # not known: as if it had all of them


def _decimal(text: str | list[str] | None, place: int = 0) -> int:
    """A number; one that cannot be read counts as one that is not 0."""
    words = text if isinstance(text, list) else (text or "").split()
    return int(words[place]) if len(words) > place and words[place].isdecimal() else 1
