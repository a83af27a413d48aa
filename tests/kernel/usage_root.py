# SPDX-License-Identifier: LGPL-2.1-or-later
"""A made-up /proc and /sys for the search for users."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from kmodd.kernel.files import readlink
from kmodd.kernel.users.netfilter import Firewall, IpSet
from kmodd.kernel.users.rtnetlink import Traffic
from kmodd.kernel.users.search import ProcUsage
from kmodd.kernel.users.tasks import Budget
from kmodd.model import User

if TYPE_CHECKING:
    from kmodd.kernel.users.ipsec import State
    from kmodd.kernel.users.netlink import TcpUse

ALIASES = {
    "fs-iso9660": ("isofs",),
    "fs-fuse": ("fuse",),
    "char-major-10-223": ("uinput",),
    "devname:snd/seq": ("snd_seq",),
    "block-major-43-0": ("nbd",),
    "rtnl-link-bond": ("bonding",),
    "md-raid5": ("raid456",),
    "nls_iso8859-8": ("nls_cp1255",),
    "sch_clsact": ("sch_ingress",),
    "net-pf-16-proto-12": ("nfnetlink",),
    "nft-expr-ct": ("nft_ct",),
    "nft-expr-limit": ("nft_limit",),
    "nft-expr-match": ("nft_compat",),
    "nft-expr-1-reject": ("nft_reject_inet",),
    "nft-chain-2-nat": ("nft_chain_nat",),
    "nft-obj-3": ("nft_ct",),
    "nft-obj-4": ("nft_limit",),
    "nfct-helper-ftp": ("nf_conntrack_ftp",),
    "nf-logger-2-0": ("nf_log_syslog",),
    "nf-flowtable-1": ("nf_flow_table_inet",),
    "ipt_conntrack": ("xt_conntrack",),
    "ip_set_hash:ip": ("ip_set_hash_ip",),
}


class FakeRoot:
    """A root folder with short ways to put things in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kinds: dict[str, str] | OSError = {}
        self.owners: dict[str, str] = {}
        self.traffic = Traffic()
        self.firewall = Firewall()
        self.sets: tuple[IpSet, ...] = ()
        self.tcp: tuple[TcpUse, ...] = ()
        self.states: tuple[State, ...] = ()
        self.associations: dict[int, int] | OSError = {}

    def put(self, path: str, text: str = "") -> None:
        file = self.path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def link(self, path: str, target: str) -> None:
        """A link; `target` is a path in the root (then it exists) or any text (then it dangles)."""
        place = self.path / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)

    def process(
        self,
        pid: int,
        exe: str,
        opened: tuple[str, ...] = (),
        *,
        mountinfo: str = "",
        ns: str = "",
        user_ns: str = "",
        cgroup: str = "",
        parent: int = 2,
    ) -> None:
        """A process; what it has open are texts of links, of which those that exist here are what they are."""
        self.put(f"proc/{pid}/comm", Path(exe).name + "\n")
        self.put(f"proc/{pid}/mountinfo", mountinfo)
        self.link(f"proc/{pid}/exe", exe)
        if ns:
            self.link(f"proc/{pid}/ns/mnt", ns)
        if user_ns:
            self.link(f"proc/{pid}/ns/user", user_ns)
        self.put(f"proc/{pid}/cgroup", f"0::{cgroup}\n")
        self.put(f"proc/{pid}/stat", f"{pid} ({Path(exe).name}) S {parent} 1 1\n")
        (self.path / f"proc/{pid}/fd").mkdir()
        for number, target in enumerate(opened):
            self.link(f"proc/{pid}/fd/{number}", target)

    def group(self, cgroup: str, *pids: int) -> None:
        """The processes of a control group."""
        self.put(f"sys/fs/cgroup{cgroup}/cgroup.procs", "".join(f"{pid}\n" for pid in pids))

    def users(self, name: str) -> list[User]:
        """What people are shown of the users of a module that is loaded."""
        return [User(user.kind, user.name, user.detail) for user in self.found(name)]

    def found(self, name: str, budget: Budget | None = None) -> list[User]:
        """All that is known of the users of a module that is loaded."""
        modules = self.path / "proc/modules"
        modules.parent.mkdir(exist_ok=True)
        text = modules.read_text() if modules.exists() else ""
        modules.write_text(text + f"{name} 16384 1 - Live 0x0\n")
        found = [user for modules, user in self.search(budget) if name in modules]
        self.put("proc/modules", text)
        return found

    def search(self, budget: Budget | None = None) -> list[tuple[frozenset[str], User]]:
        """All that is known of the users of all modules."""
        search = ProcUsage(
            self.path,
            lambda alias: ALIASES.get(alias, ()),
            kinds=self._kinds,
            traffic=lambda *_: self.traffic,
            netfilter=lambda _: self.firewall,
            sets=lambda: self.sets,
            tcp=lambda: self.tcp,
            states=lambda: self.states,
            owner=self._owner,
            associations=self._associations,
        )
        return list(search.search(budget or Budget()))

    def _owner(self, link: Path) -> str:
        """The user namespace that owns a mount namespace, where the test says so."""
        return self.owners.get(readlink(link), "")

    def _associations(self) -> dict[int, int]:
        if isinstance(self.associations, OSError):
            raise self.associations
        return self.associations

    def _kinds(self) -> dict[str, str]:
        if isinstance(self.kinds, OSError):
            raise self.kinds
        return self.kinds


def number(path: str) -> str:
    """`major:minor` of a device of this machine."""
    device = os.stat(path).st_rdev  # noqa: PTH116 - only its number
    return f"{os.major(device)}:{os.minor(device)}"
