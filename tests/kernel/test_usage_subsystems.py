# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who keeps a module busy beside mounts, devices and processes: traffic control, netfilter, configfs, layers of block devices."""

import os
from pathlib import Path

import pytest

from kmodd.kernel.users import block as usage_block
from kmodd.kernel.users.netfilter import Expression, Firewall, IpSet, Item, Rule
from kmodd.kernel.users.netlink import TcpUse, read_socket
from kmodd.kernel.users.process import Inode, SocketModules, SocketUse
from kmodd.kernel.users.rtnetlink import Action, Filter, Qdisc, Traffic
from kmodd.kernel.users.search import ProcUsage
from kmodd.kernel.users.tasks import Budget, Limits
from kmodd.model import Remedy, User
from tests.kernel.usage_root import ALIASES, FakeRoot


@pytest.fixture
def root(tmp_path: Path) -> FakeRoot:
    return FakeRoot(tmp_path)


def commands(users: list[User]) -> list[tuple[Remedy, tuple[str, ...]]]:
    return [(user.remedy, user.words) for user in users]


# --- traffic control --------------------------------------------------------------------------------------------------

ROOT, CLSACT = 0xFFFFFFFF, 0xFFFFFFF1


def test_qdiscs_below_others_come_first(root: FakeRoot) -> None:
    root.traffic = Traffic(
        (
            Qdisc("lo", "prio", 0x10000, ROOT),
            Qdisc("lo", "prio", 0x300000, 0x200001),
            Qdisc("lo", "prio", 0x200000, 0x10001),
            Qdisc("eth0", "fq", 0x80010000, ROOT),
        )
    )
    assert commands(root.found("sch_prio")) == [
        (Remedy.DELETE_QDISC, ("lo", "parent", "20:1")),
        (Remedy.DELETE_QDISC, ("lo", "parent", "1:1")),
        (Remedy.DELETE_QDISC, ("lo", "root")),
    ]
    assert root.users("sch_fq") == [User("qdisc", "fq on eth0", "root")]


def test_qdisc_by_an_alias_and_the_kernels_own(root: FakeRoot) -> None:
    root.traffic = Traffic(
        (
            Qdisc("lo", "clsact", 0xFFFF0000, CLSACT),
            Qdisc("eth0", "fq_codel", 0, ROOT),
            Qdisc("eth1", "fq_codel", 0, 1),
            Qdisc("lo", "noqueue", 0, ROOT),
        )
    )
    assert commands(root.found("sch_ingress")) == [(Remedy.DELETE_QDISC, ("lo", "clsact"))]
    assert commands(root.found("sch_fq_codel")) == [
        (Remedy.REPLACE_QDISC, ("eth0", "root", "pfifo_fast")),
        (Remedy.REPLACE_QDISC, ("eth1", "root", "mq")),
    ]


def test_filters_with_their_actions_and_actions_alone(root: FakeRoot) -> None:
    root.traffic = Traffic(
        filters=(
            Filter("lo", "u32", ("parent", "1:"), 3, 0, frozenset({"gact", "mirred"})),
            Filter("lo", "flower", ("ingress",), 1, 7, frozenset()),
        ),
        actions=(Action("police", 7), Action("gact", 2)),
    )
    by_filter = (Remedy.DELETE_FILTER, ("lo", "parent", "1:", "pref", "3"))
    assert commands(root.found("cls_u32")) == commands(root.found("act_mirred")) == [by_filter]
    assert commands(root.found("cls_flower")) == [(Remedy.DELETE_FILTER, ("lo", "ingress", "chain", "7", "pref", "1"))]
    assert commands(root.found("act_gact")) == [by_filter, (Remedy.DELETE_ACTION, ("gact", "index", "2"))]


def test_defaults_are_changed_first(root: FakeRoot) -> None:
    root.put("proc/sys/net/core/default_qdisc", "fq\n")
    root.put("proc/sys/net/ipv4/tcp_congestion_control", "bbr\n")
    root.put("proc/sys/net/ipv4/tcp_available_congestion_control", "reno cubic bbr\n")
    (qdisc,), (control,) = root.found("sch_fq"), root.found("tcp_bbr")
    assert (qdisc.remedy, qdisc.words) == (Remedy.SET_SYSCTL, ("net.core.default_qdisc=pfifo_fast",))
    assert (control.kind, control.words) == ("sysctl", ("net.ipv4.tcp_congestion_control=cubic",))


def test_what_the_kernel_does_not_answer_is_said_to_be_missing(root: FakeRoot) -> None:
    def refused(*_: object) -> Traffic:
        raise PermissionError

    root.put("proc/modules", "sch_fq 1 1 - Live 0x0\nnf_tables 1 1 - Live 0x0\nip_set 1 1 - Live 0x0\n")
    budget = Budget()
    search = ProcUsage(root.path, lambda _: (), traffic=refused, netfilter=refused, sets=refused)  # type: ignore[arg-type]
    assert list(search.search(budget)) == []
    assert budget.partial == (
        "traffic control cannot be read, the sets of ipset cannot be read, the rules of nf_tables cannot be read"
    )


def test_no_request_would_load_a_module(root: FakeRoot) -> None:
    def asked(*_: object) -> Traffic:
        raise AssertionError("a question that no loaded module answers")

    root.put("proc/modules", "loop 1 1 - Live 0x0\n")
    search = ProcUsage(root.path, lambda _: (), traffic=asked, netfilter=asked, sets=asked)  # type: ignore[arg-type]
    assert list(search.search(Budget())) == []


# --- netfilter --------------------------------------------------------------------------------------------------------

INET, IP = 1, 2


def rule(handle: int, *expressions: Expression, family: int = INET, table: str = "t", chain: str = "c") -> Rule:
    return Rule(family, table, chain, handle, expressions)


def deletes(handle: int, family: str = "inet", table: str = "t", chain: str = "c") -> tuple[Remedy, tuple[str, ...]]:
    return Remedy.DELETE_RULE, (family, table, chain, "handle", str(handle))


def test_rules_by_their_expressions(root: FakeRoot) -> None:
    root.put("proc/modules", "nf_tables 1 1 - Live 0x0\n")
    root.firewall = Firewall(
        tables=[Item(INET, "t", "t")],
        rules=[
            rule(2, Expression("ct"), Expression("cmp")),
            rule(3, Expression("reject")),
            rule(4, Expression("match", "conntrack"), family=IP, table="filter", chain="INPUT"),
            rule(5, Expression("log"), family=IP),
        ],
    )
    assert commands(root.found("nft_ct")) == [deletes(2)]
    assert root.users("nft_ct") == [User("rule", "inet t c handle 2", "ct, cmp")]
    assert commands(root.found("nft_reject_inet")) == [deletes(3)]
    assert (
        commands(root.found("nft_compat"))
        == commands(root.found("xt_conntrack"))
        == [deletes(4, "ip", "filter", "INPUT")]
    )
    assert root.users("xt_conntrack") == [User("rule", "ip filter INPUT handle 4", "match conntrack")]
    assert commands(root.found("nf_log_syslog")) == [deletes(5, "ip")]
    assert commands(root.found("nf_tables")) == [(Remedy.DELETE_TABLE, ("inet", "t"))]
    assert root.users("nf_tables") == [User("table", "inet t", "2 rules")]


def test_a_rule_of_the_bridge_has_its_own_extension_and_not_that_for_all_families(root: FakeRoot) -> None:
    root.firewall = Firewall(
        rules=[
            rule(4, Expression("match", "limit"), family=7, table="filter", chain="INPUT"),
            rule(5, Expression("match", "limit"), family=IP, table="filter", chain="INPUT"),
        ]
    )
    root.put("proc/modules", "ebt_limit 1 1 - Live 0x0\nnf_tables 1 1 - Live 0x0\n")
    assert commands(root.found("ebt_limit")) == [deletes(4, "bridge", "filter", "INPUT")]
    assert commands(root.found("xt_limit")) == [deletes(5, "ip", "filter", "INPUT")]


def test_rules_go_before_what_they_refer_to(root: FakeRoot) -> None:
    root.put("proc/modules", "nf_tables 1 1 - Live 0x0\n")
    root.firewall = Firewall(
        chains=[Item(IP, "n", "post", type="nat"), Item(IP, "n", "in", type="filter")],
        rules=[
            rule(2, Expression("lookup", references=("named",))),
            rule(3, Expression("objref", references=("slow",))),
            rule(4, Expression("dynset", references=("grown",), inner=(Expression("limit"),))),
            rule(5, Expression("cmp"), family=IP, table="n", chain="post"),
            rule(6, Expression("lookup", references=("named",)), table="other"),
        ],
        sets=[Item(INET, "t", "named", expressions=(Expression("limit"),)), Item(INET, "t", "grown")],
        objects=[Item(INET, "t", "slow", number=4), Item(INET, "t", "h", number=3, helper="ftp")],
        flowtables=[Item(INET, "t", "f")],
    )
    assert commands(root.found("nft_limit")) == [
        deletes(2),
        deletes(3),
        deletes(4),
        (Remedy.DELETE_SET, ("inet", "t", "named")),
        (Remedy.DELETE_SET, ("inet", "t", "grown")),
        (Remedy.DELETE_OBJECT, ("limit", "inet", "t", "slow")),
    ]
    helper = (Remedy.DELETE_OBJECT, ("ct", "helper", "inet", "t", "h"))
    assert commands(root.found("nf_conntrack_ftp")) == commands(root.found("nft_ct")) == [helper]
    assert commands(root.found("nft_chain_nat")) == [
        deletes(5, "ip", "n", "post"),
        (Remedy.DELETE_CHAIN, ("ip", "n", "post")),
    ]
    assert commands(root.found("nf_flow_table_inet")) == [(Remedy.DELETE_FLOWTABLE, ("inet", "t", "f"))]


def test_more_rules_than_are_read_are_said_to_be(root: FakeRoot) -> None:
    root.put("proc/modules", "nf_tables 1 1 - Live 0x0\n")
    root.firewall = Firewall(crowded=True)
    budget = Budget()
    root.found("nft_ct", budget)
    assert budget.partial == "nf_tables has more rules than are examined"


def test_rules_leave_time_for_what_comes_after_them() -> None:
    seconds = iter([0.0, 0.0, *[0.8] * 1000])
    budget = Budget(Limits(seconds=1), clock=lambda: next(seconds))
    assert budget.in_time()
    assert not budget.in_time_for_rules()
    assert budget.in_time()
    assert budget.partial == "the rules of netfilter were not examined after 0.7 s"


def test_sets_of_ipset(root: FakeRoot) -> None:
    root.put("proc/modules", "ip_set 1 1 - Live 0x0\n")
    root.sets = (IpSet("hosts", "hash:ip"), IpSet("x\ny", "hash:ip"))
    assert root.users("ip_set_hash_ip") == [User("set", "hosts", "hash:ip"), User("set", "x\\x0ay", "hash:ip")]
    assert commands(root.found("ip_set_hash_ip"))[0] == (Remedy.DESTROY_SET, ("hosts",))


# --- configfs ---------------------------------------------------------------------------------------------------------

CONFIG = "sys/kernel/config"


def items(root: FakeRoot, module: str) -> list[tuple[str, str]]:
    prefix = f"/{CONFIG}/"
    return [(user.remedy.value, user.words[0].removeprefix(prefix)) for user in root.found(module)]


def test_item_of_configfs(root: FakeRoot) -> None:
    root.put(f"{CONFIG}/nullb/a/power", "0\n")
    root.put(f"{CONFIG}/nullb/features", "x\n")
    assert root.users("null_blk") == [User("configfs", "/sys/kernel/config/nullb/a", "item")]
    assert items(root, "null_blk") == [("remove-folder", "nullb/a")]


def test_tree_of_nvmet_is_taken_down_from_its_ends(root: FakeRoot) -> None:
    nvmet = f"{CONFIG}/nvmet"
    for folder in ("hosts/h", "subsystems/s/namespaces/1", "subsystems/s/allowed_hosts", "ports/1/ana_groups/1"):
        (root.path / nvmet / folder).mkdir(parents=True)
    for folder in ("ports/1/ana_groups/2", "ports/1/referrals", "ports/1/subsystems"):
        (root.path / nvmet / folder).mkdir(parents=True)
    root.put(f"{nvmet}/ports/1/addr_trtype", "tcp\n")
    root.link(f"{nvmet}/subsystems/s/allowed_hosts/h", "../../../../nvmet/hosts/h")
    root.link(f"{nvmet}/ports/1/subsystems/s", "../../../../nvmet/subsystems/s")
    found = items(root, "nvmet")
    assert sorted(found[:2]) == [
        ("unlink", "nvmet/ports/1/subsystems/s"),
        ("unlink", "nvmet/subsystems/s/allowed_hosts/h"),
    ]
    assert sorted(found[2:4]) == [
        ("remove-folder", "nvmet/ports/1/ana_groups/2"),
        ("remove-folder", "nvmet/subsystems/s/namespaces/1"),
    ]
    assert sorted(found[4:]) == [
        ("remove-folder", "nvmet/hosts/h"),
        ("remove-folder", "nvmet/ports/1"),
        ("remove-folder", "nvmet/subsystems/s"),
    ]
    assert items(root, "nvmet_tcp") == [("unlink", "nvmet/ports/1/subsystems/s")]
    assert items(root, "nvmet_rdma") == []


def test_parts_of_the_target_have_modules_of_their_own(root: FakeRoot) -> None:
    target = f"{CONFIG}/target"
    for folder in ("core/alua/lu_gps/default_lu_gp", "core/fileio_0/d/alua/default_tg_pt_gp", "core/fileio_0/d/attrib"):
        (root.path / target / folder).mkdir(parents=True)
    (root.path / target / "loopback/naa.5/tpgt_1/lun/lun_0").mkdir(parents=True)
    (root.path / target / "loopback/discovery_auth").mkdir()
    root.link(f"{target}/loopback/naa.5/tpgt_1/lun/lun_0/x", "../../../../../../target/core/fileio_0/d")
    link = ("unlink", "target/loopback/naa.5/tpgt_1/lun/lun_0/x")
    assert items(root, "target_core_file") == [
        link,
        ("remove-folder", "target/core/fileio_0/d"),
        ("remove-folder", "target/core/fileio_0"),
    ]
    assert items(root, "tcm_loop") == [
        link,
        *(
            ("remove-folder", f"target/loopback{below}")
            for below in ("/naa.5/tpgt_1/lun/lun_0", "/naa.5/tpgt_1", "/naa.5", "")
        ),
    ]
    assert items(root, "target_core_iblock") == []


INFORMATION = """\
Status: ACTIVATED  Max Queue Depth: 128  SectorSize: 512  HwMaxSectors: 16384
        TCM FILEIO ID: 0        File: {}  Size: 8388608  Mode: Buffered-WCE Async: 0
"""


@pytest.mark.parametrize("offered", ["fileio", "nvmet", "iblock"])
def test_what_a_target_offers_is_in_use_by_it(root: FakeRoot, offered: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of what is mounted, or a disk; it goes before the mount."""
    target, nvmet = f"{CONFIG}/target", f"{CONFIG}/nvmet/subsystems/s/namespaces/1"
    core = f"{target}/core/{'iblock' if offered == 'iblock' else 'fileio'}_0/d"
    (root.path / core / "alua/default_tg_pt_gp").mkdir(parents=True)
    (root.path / target / "loopback/naa.5/tpgt_1/lun/lun_0").mkdir(parents=True)
    root.link(f"{target}/loopback/naa.5/tpgt_1/lun/lun_0/x", f"../../../../../../target/{core[len(target) + 1 :]}")
    expected = [
        ("unlink", "target/loopback/naa.5/tpgt_1/lun/lun_0/x"),
        ("remove-folder", core.removeprefix(f"{CONFIG}/")),
    ]
    file, module = "/srv/a stick/lun", "vfat"
    if offered == "fileio":
        root.put(f"{core}/info", INFORMATION.format(file))
    elif offered == "iblock":
        file, module = "/dev/block/7:5", "loop"
        root.put(
            f"{core}/info",
            "        iBlock device: loop5  UDEV PATH: x readonly: 0\n        Major: 7 Minor: 5  IBLOCK\n",
        )
    else:
        expected = [("remove-folder", "nvmet/subsystems/s/namespaces/1")]
        root.put(f"{nvmet}/device_path", f"{file}\n")
    enable = f"{nvmet if offered == 'nvmet' else core}/enable"
    root.put(enable, "1\n")
    root.put("proc/devices", "Block devices:\n  7 loop\n")
    mount = "30 20 1:0 / /srv/a\\040stick rw - vfat /dev/ram0 rw\n"
    root.process(1, "/sbin/init", mountinfo=mount)
    nodes = {
        f"{root.path}/proc/1/root{file}": Inode("block", (7, 5), (0, 5))
        if offered == "iblock"
        else Inode("", (0, 0), (1, 0))
    }
    monkeypatch.setattr(usage_block, "inode", lambda path: nodes.get(str(path)))
    users = [user for user in root.found(module) if user.kind == "configfs"]
    assert [(user.remedy.value, user.words[0].removeprefix(f"/{CONFIG}/")) for user in users] == expected
    assert {user.level for user in users} == {1}
    assert all(user.detail.endswith(f", offers {file}") for user in users)
    assert {user.owner for user in users} == {None}
    (root.path / core).parent.chmod(0o700)
    owners = {user.owner for user in root.found(module) if user.kind == "configfs"}
    assert owners == ({None} if offered == "nvmet" else {0}), "a link to it is public, its folder is not"
    root.put(enable, "0\n")
    assert "configfs" not in {user.kind for user in root.found(module)}, "it has the file open while it is enabled"
    root.put(enable, "1\n")
    nodes.clear()
    assert "configfs" not in {user.kind for user in root.found(module)}, "another file has this path by now"


def test_configfs_that_is_closed_to_others_is_not_shown_to_them(root: FakeRoot) -> None:
    root.put(f"{CONFIG}/nullb/a/power", "0\n")
    (user,) = root.found("null_blk")
    assert user.owner is None
    (root.path / CONFIG).chmod(0o750)
    (user,) = root.found("null_blk")
    assert user.owner == 0


def test_configfs_with_many_items_is_looked_at_up_to_a_limit(root: FakeRoot) -> None:
    (root.path / CONFIG / "nullb").mkdir(parents=True)
    for n in range(4200):
        os.mkdir(root.path / CONFIG / f"nullb/{n}")  # noqa: PTH102 - thousands of times
    budget = Budget(Limits(seconds=60))
    assert len(root.found("null_blk", budget)) == Limits().users
    assert budget.partial == "configfs has more than 4096 items"


# --- layers of block devices ------------------------------------------------------------------------------------------


def block(root: FakeRoot, name: str, number: str) -> str:
    root.put(f"sys/block/{name}/dev", f"{number}\n")
    root.link(f"sys/dev/block/{number}", f"../../block/{name}")
    root.link(f"sys/class/block/{name}", f"../../block/{name}")
    return f"sys/block/{name}"


def stacked(root: FakeRoot) -> None:
    """/mnt on loop6 on dm-0 on loop5 on ram0."""
    root.put("proc/devices", "Character devices:\n\nBlock devices:\n  1 ramdisk\n  7 loop\n253 device-mapper\n")
    low, five, mapping, six = (
        block(root, *each) for each in (("ram0", "1:0"), ("loop5", "7:5"), ("dm-0", "253:0"), ("loop6", "7:6"))
    )
    assert low
    root.put(f"{five}/loop/backing_file", "/dev/ram0\n")
    root.put(f"{six}/loop/backing_file", "/dev/dm-0\n")
    root.put(f"{mapping}/dm/name", "low\n")
    root.link(f"{mapping}/slaves/loop5", "../../loop5")
    root.link(f"{five}/holders/dm-0", "../../dm-0")
    root.process(1, "/sbin/init", mountinfo="30 1 7:6 / /mnt rw shared:1 - ext4 /dev/loop6 rw\n")


def test_what_is_on_top_keeps_the_lowest_module_busy(root: FakeRoot) -> None:
    stacked(root)
    ALIASES["block-major-1-0"] = ("brd",)
    try:
        found = root.found("brd")
    finally:
        del ALIASES["block-major-1-0"]
    assert [(user.remedy, user.target) for user in found] == [
        (Remedy.UNMOUNT, "/mnt"),
        (Remedy.DETACH_LOOP, "/dev/loop6"),
        (Remedy.REMOVE_MAPPING, "low"),
        (Remedy.DETACH_LOOP, "/dev/loop5"),
    ]


def test_mapping_that_nothing_uses_holds_its_module(root: FakeRoot) -> None:
    root.put("proc/devices", "Character devices:\n\nBlock devices:\n253 device-mapper\n")
    root.put(f"{block(root, 'dm-0', '253:0')}/dm/name", "alone\n")
    (user,) = root.found("dm_mod")
    assert (user.remedy, user.target, user.detail) == (Remedy.REMOVE_MAPPING, "alone", "device-mapper device alone")


def test_target_of_the_only_mapping_is_known(root: FakeRoot) -> None:
    root.put("proc/devices", "Character devices:\n\nBlock devices:\n253 device-mapper\n")
    root.put(f"{block(root, 'dm-0', '253:0')}/dm/name", "alone\n")
    (user,) = root.found("dm_zero")
    assert (user.remedy, user.target) == (Remedy.REMOVE_MAPPING, "alone")
    root.put(f"{block(root, 'dm-1', '253:1')}/dm/name", "secret\n")
    root.put("sys/block/dm-1/dm/uuid", "CRYPT-LUKS2-1-x\n")
    assert [user.remedy for user in root.found("dm_zero")] == [Remedy.REMOVE_MAPPING], (
        "the other one is known to be dm_crypt's"
    )
    root.put(f"{block(root, 'dm-2', '253:2')}/dm/name", "third\n")
    user, _ = root.found("dm_zero")
    assert (user.remedy, user.detail) == (Remedy.NONE, "device-mapper device alone, or another one (dmsetup table)")
    root.put("proc/modules", "dm_bufio 1 1 dm_verity, Live 0x0\n")
    assert "dm_bufio" not in {name for names, _ in root.search() for name in names}, "modules alone hold it"


def test_devices_that_are_below_themselves_end_the_search(root: FakeRoot) -> None:
    root.put("proc/devices", "Character devices:\n\nBlock devices:\n253 device-mapper\n")
    folder = block(root, "dm-0", "253:0")
    root.put(f"{folder}/dm/name", "x\n")
    root.link(f"{folder}/slaves/dm-0", "../../dm-0")
    root.found("dm_mod")


# --- options of mounts ------------------------------------------------------------------------------------------------


def test_mount_by_its_character_set(root: FakeRoot) -> None:
    options = "rw,fmask=0022,codepage=437,iocharset=iso8859-8,shortname=mixed"
    root.process(1, "/sbin/init", mountinfo=f"30 1 7:0 / /usb rw shared:1 - vfat /dev/loop0 {options}\n")
    expected = User("mount", "/usb", "type vfat, source /dev/loop0, iocharset=iso8859-8")
    assert root.users("nls_cp1255") == [expected]
    assert root.users("nls_cp437") == [User("mount", "/usb", "type vfat, source /dev/loop0, codepage=437")]
    assert root.users("nls_ascii") == []


def test_options_that_a_user_can_choose_name_no_module(root: FakeRoot) -> None:
    line = "30 1 0:50 / /m rw - overlay x rw,lowerdir=/tmp/a,iocharset=ascii,vers=4,jqfmt=vfsv0\n"
    root.put("proc/modules", "overlay 1 1 - Live 0x0\n")
    root.process(1, "/sbin/init", mountinfo=line)
    assert root.users("nls_ascii") == root.users("quota_v2") == root.users("nfsv4") == []


def test_version_of_nfs_and_format_of_quotas(root: FakeRoot) -> None:
    lines = "30 1 0:50 / /far rw - nfs4 h:/x rw,vers=4.2,rsize=1\n31 1 8:1 / /home rw - ext4 /dev/sda1 rw,jqfmt=vfsv1\n"
    root.put("proc/modules", "nfs4 1 1 - Live 0x0\n")
    root.process(1, "/sbin/init", mountinfo=lines)
    assert [user.name for user in root.found("nfsv4")] == ["/far"]
    assert [user.name for user in root.found("quota_v2")] == ["/home"]


# --- sockets and algorithms -------------------------------------------------------------------------------------------

PROTOCOLS = "protocol  size sockets  memory press maxhdr  slab module     cl co di ac io in de sh ss gs se re sp bi br ha uh gp em\n"
ALG = "ALG       1000      2      -1   NI       0   no   af_alg      n  n  n  n  n  n  n  n  n  n  n  n  n  n  n  n  n  n  n\n"


def sockets(root: FakeRoot, monkeypatch: pytest.MonkeyPatch, **loaded: int) -> SocketModules:
    root.put("proc/net/protocols", PROTOCOLS + ALG)
    root.put("proc/modules", "".join(f"{name} 1 {count} - Live 0x0\n" for name, count in loaded.items()))
    monkeypatch.setattr(os, "getxattr", lambda *_: b"ALG\0")
    return SocketModules(root.path, loaded, lambda alias: ALIASES.get(alias, ()))


@pytest.mark.parametrize(
    ("references", "holders", "certain"),
    [
        (2, [{5}], True),
        (3, [{5}], True),
        (2, [{5, 6}], True),
        (4, [{5}, {5}], True),
        (4, [{5}], False),
        (4, [{5}, {6}], False),
        (4, [{5}, {5, 6}], False),
        (0, [{5}], False),
    ],
    ids=["one", "accepted", "inherited", "two of a process", "one unseen", "two", "one inherited", "opened meanwhile"],
)
def test_socket_of_the_crypto_api_is_bound_where_it_must_be(
    root: FakeRoot, monkeypatch: pytest.MonkeyPatch, references: int, holders: list[set[int]], certain: bool
) -> None:
    """Nothing shows which of several is bound."""
    alone = sockets(root, monkeypatch, af_alg=references, algif_hash=1, algif_skcipher=0)
    assert alone.uses("/proc/1/fd/3", "socket:[7]") == [SocketUse("ALG", frozenset({"af_alg"}), bindable=True)]
    (use,) = alone.bound({str(number): frozenset(each) for number, each in enumerate(holders)})
    assert use == SocketUse("ALG", frozenset({"algif_hash"}), "" if certain else "which may be bound to it")


@pytest.mark.parametrize(
    ("loaded", "certain"),
    [
        ({"algif_hash": 2}, True),
        ({"algif_hash": 1}, False),
        ({"algif_hash": 1, "algif_skcipher": 1}, False),
    ],
    ids=["as many as there are", "one of them", "of two types"],
)
def test_sockets_of_several_processes(
    root: FakeRoot, monkeypatch: pytest.MonkeyPatch, loaded: dict[str, int], certain: bool
) -> None:
    both = sockets(root, monkeypatch, af_alg=4, **loaded)
    (use,) = both.bound({"7": frozenset({5}), "8": frozenset({6})})
    assert (set(use.modules), not use.doubt) == (set(loaded), certain)


@pytest.mark.parametrize(
    "modules",
    [
        "af_alg 1 2 - Live 0x0\nalgif_hash 1 0 - Live 0x0\n",
        "af_alg 1 2 - Live 0x0\nalgif_hash 1 1 - Live 0x0\nalgif_skcipher 1 1 - Live 0x0\n",
        "af_alg 1 4 - Live 0x0\nalgif_hash 1 1 - Live 0x0\n",
        "",
    ],
    ids=["unbound", "of another type", "one more", "not to be read"],
)
def test_sockets_that_changed_while_they_were_looked_at(
    root: FakeRoot, monkeypatch: pytest.MonkeyPatch, modules: str
) -> None:
    """The bound one may have been closed, and the one that is left be bound to nothing."""
    before = sockets(root, monkeypatch, af_alg=2, algif_hash=1)
    root.put("proc/modules", modules)
    (use,) = before.bound({"7": frozenset({5})})
    assert use.doubt


def test_process_whose_socket_may_be_unbound_is_not_ended(root: FakeRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    root.put("proc/net/protocols", PROTOCOLS + ALG)
    monkeypatch.setattr(os, "getxattr", lambda *_: b"ALG\0")
    root.process(5, "/usr/bin/x", ("socket:[7]",))
    root.process(6, "/usr/bin/y", ("socket:[8]",))
    root.put("proc/modules", "af_alg 1 5 algif_hash, Live 0x0\n")
    details = ["pid 5 socket ALG, which may be bound to it", "pid 6 socket ALG, which may be bound to it"]
    assert [(user.kind, user.remedy, user.detail) for user in root.found("algif_hash")] == [
        ("candidate", Remedy.NONE, detail) for detail in details
    ]
    assert [(user.kind, user.remedy) for user in root.found("af_alg")] == [("process", Remedy.KILL)] * 2


def test_process_that_may_be_another_types_is_not_ended(root: FakeRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    root.put("proc/net/protocols", PROTOCOLS + ALG)
    monkeypatch.setattr(os, "getxattr", lambda *_: b"ALG\0")
    root.process(5, "/usr/bin/x", ("socket:[7]",))
    root.put("proc/modules", "af_alg 1 3 algif_hash, Live 0x0\n")
    (user,) = root.found("algif_hash")
    assert (user.remedy, user.detail) == (Remedy.KILL, "pid 5 socket ALG")
    root.put("proc/modules", "af_alg 1 2 algif_hash, Live 0x0\nalgif_skcipher 1 1 - Live 0x0\n")
    (user,) = root.found("algif_hash")
    assert (user.kind, user.detail) == ("candidate", "pid 5 socket ALG, which may be bound to it")


def test_netlink_socket_by_its_inode(root: FakeRoot) -> None:
    table = (
        "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n"
        "0000000000000000 12  345        00000000 0        0        0     2        0        4711\n"
        "0000000000000000 12  0          00000000 0        0        0     2        0        0\n"
        "0000000000000000 0   1          00000000 0        0        0     2        0        8\n"
        "broken\n"
    )
    root.put("proc/net/netlink", table)
    root.process(5, "/usr/sbin/conntrackd", ("socket:[4711]", "socket:[8]", "socket:[0]"))
    (user,) = root.found("nfnetlink")
    assert (user.detail, user.pids) == ("pid 5 socket NETLINK", (5,))


TCP = (
    "020100008014a7d97f0000010000000000000000000000007f00000100000000000000000000000000000000030000000000000000000000000000"
    "000000000000000000a9ee0900050008000000000008000f00000000000c001500010000000000000006001600520000000800040062627200"
)
"""A socket of TCP as Linux 6.18 dumps it."""


def test_congestion_control_of_a_socket() -> None:
    body = bytes.fromhex(TCP)
    assert list(read_socket(body)) == [TcpUse(650921, "bbr", "tcp_bbr")]
    for length in range(len(body)):
        list(read_socket(body[:length]))


def test_process_by_the_congestion_control_of_its_socket(root: FakeRoot) -> None:
    root.put("proc/modules", "tcp_diag 1 1 - Live 0x0\n")
    root.process(5, "/usr/bin/curl", ("socket:[650921]", "socket:[1]"))
    root.tcp = (TcpUse(650921, "bbr", "tcp_bbr"), TcpUse(1, "cubic", "tcp_cubic"))
    (user,) = root.found("tcp_bbr")
    assert (user.detail, user.remedy, user.pids) == ("pid 5 socket TCP with bbr", Remedy.KILL, (5,))
    root.put("proc/modules", "")
    assert root.found("tcp_bbr") == [], "the question would load tcp_diag"


def test_algorithm_that_something_uses(root: FakeRoot) -> None:
    entry = "name         : {}\ndriver       : {}\nmodule       : {}\npriority     : 1\nrefcnt       : {}\n"
    entries = [
        entry.format("sha256", "sha256-ni", "sha256-ssse3", 3),
        entry.format("sha224", "sha224-ni", "sha256-ssse3", 1),
        "garbage",
        entry.format("x", "y", "sha256-ssse3", "z"),
    ]
    root.put("proc/crypto", "\n".join(entries))
    assert root.users("sha256_ssse3") == [User("crypto", "sha256", "driver sha256-ni, used 2 times")]


@pytest.mark.parametrize(
    ("table", "bound"),
    [
        ("proc/net/netlink", "there are more netlink sockets than are examined"),
        ("proc/crypto", "there are more algorithms than are examined"),
    ],
)
def test_tables_that_users_can_fill_are_read_up_to_a_limit(root: FakeRoot, table: str, bound: str) -> None:
    root.put(table, "x" * (2 << 20))
    root.process(5, "/usr/bin/x", ("socket:[1]",))
    budget = Budget()
    root.found("nfnetlink", budget)
    assert budget.partial == bound


# --- watchdogs -------------------------------------------------------------------------------------


def test_watchdog_that_runs(root: FakeRoot) -> None:
    folder = "sys/class/watchdog/watchdog0"
    for name, value in (("identity", "Software Watchdog"), ("state", "active"), ("timeleft", "42"), ("nowayout", "0")):
        root.put(f"{folder}/{name}", f"{value}\n")
    (user,) = root.found("softdog")
    assert (user.kind, user.name, user.detail) == ("watchdog", "/dev/watchdog0", "42 s left")
    assert (user.remedy, user.words) == (Remedy.STOP_WATCHDOG, ("/dev/watchdog0",))
    root.put(f"{folder}/nowayout", "1\n")
    (user,) = root.found("softdog")
    assert (user.remedy, user.detail) == (Remedy.NONE, "cannot be stopped, 42 s left")
    root.put(f"{folder}/state", "inactive\n")
    assert root.found("softdog") == []
