# SPDX-License-Identifier: LGPL-2.1-or-later
"""What holds a module by its trace events, by programs of BPF or by algorithms of the crypto API, on a made-up /proc and /sys."""

import struct
from pathlib import Path

import pytest

from kmodd.core.diagnosis.advice import advised, command
from kmodd.kernel.proc.crypto import Algorithms
from kmodd.kernel.users import netlink, tracing
from kmodd.kernel.users.netlink import TcpUse, attribute, macsec_associations, read_socket
from kmodd.kernel.users.process import SocketModules
from kmodd.kernel.users.tasks import Budget
from kmodd.kernel.users.tracing import Tracing, tracing_users
from kmodd.model import Remedy, User
from tests.kernel.usage_root import FakeRoot

EVENTS = "sys/kernel/tracing/events"


@pytest.fixture
def root(tmp_path: Path) -> FakeRoot:
    made = FakeRoot(tmp_path)
    made.put("proc/modules", "btrfs 1 1 - Live 0x0\n")
    made.put("sys/module/btrfs/sections/_ftrace_events")
    made.put("sys/kernel/tracing/set_event", "oom:mark_victim\nbtrfs:btrfs_sync_fs\n")
    made.put(f"{EVENTS}/btrfs/btrfs_sync_fs/enable", "0*\n")
    made.put(f"{EVENTS}/btrfs/btrfs_sync_fs/trigger", "# Available triggers:\n")
    return made


def commands(root: FakeRoot, references: int = 1) -> list[str]:
    users = [user for _, user in tracing_users(Tracing(root.path, Budget()), {"btrfs": references})]
    return [user.command for user in advised(users)]


def test_a_trigger_that_enables_an_event(root: FakeRoot) -> None:
    root.put(f"{EVENTS}/sched/sched_switch/trigger", "enable_event:btrfs:btrfs_sync_fs:unlimited if prev_pid == 1\n")
    root.put("sys/kernel/tracing/set_ftrace_filter", "do_exit\n\ndo_exit:traceon:unlimited\n")
    path = f"/{EVENTS}/sched/sched_switch/trigger"
    line = "!enable_event:btrfs:btrfs_sync_fs if prev_pid == 1"
    assert commands(root) == [f"""sh -c 'echo "$1" >>"$2"' sh '{line}' {path}"""]
    assert commands(root, 0) == [], "nothing uses it"


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("set_ftrace_filter", "do_exit:enable_event:btrfs:btrfs_sync_fs:unlimited"),
        ("dynamic_events", "e:eprobes/mine btrfs.btrfs_sync_fs ino=$ino"),
    ],
)
def test_a_file_that_is_too_long_is_said_to_be(
    root: FakeRoot, monkeypatch: pytest.MonkeyPatch, file: str, line: str
) -> None:
    """What is cut off may be a part of another line."""
    root.put(f"sys/kernel/tracing/{file}", f"{line}\n" * 100)
    monkeypatch.setattr(tracing, "_TABLE_MAX", 3 * len(line) + 2)
    budget = Budget()
    users = [user for _, user in tracing_users(Tracing(root.path, budget), {"btrfs": 1})]
    assert len(users) == 2
    assert budget.partial.startswith(f"{file} of tracefs has more than")


def test_no_trigger_is_looked_for_where_no_event_is_enabled_by_one(root: FakeRoot) -> None:
    root.put(f"{EVENTS}/btrfs/btrfs_sync_fs/enable", "1\n")
    root.put(f"{EVENTS}/sched/sched_switch/trigger", "enable_event:btrfs:btrfs_sync_fs:unlimited\n")
    assert commands(root) == []


def test_events_of_the_kernel_that_have_the_name_of_a_module(root: FakeRoot) -> None:
    """The system `bridge` is part of the kernel (net/core/net-traces.c), and others have another name than their module."""
    root.put("proc/modules", "bridge 1 1 - Live 0x0\nscsi_mod 1 1 - Live 0x0\niwlwifi 1 1 - Live 0x0\n")
    root.put(
        "sys/kernel/tracing/available_events",
        "bridge:br_fdb_add\nscsi:scsi_eh_wakeup\niwlwifi_io:iwlwifi_dev_ioread32\n",
    )
    names = ("br_fdb_add", "scsi_eh_wakeup", "iwlwifi_dev_ioread32")
    root.process(7, "/usr/bin/bpftrace", ("anon_inode:bpf_link",) * 3)
    for number, name in enumerate(names):
        root.put(f"proc/7/fdinfo/{number}", f"link_type:\traw_tracepoint\ntp_name:\t{name}\n")
    root.put(f"{EVENTS}/bridge/br_fdb_add/enable", "0*\n")
    root.put(f"{EVENTS}/sched/sched_switch/trigger", "enable_event:bridge:br_fdb_add:unlimited\n")
    assert [user for modules, user in root.search() if user.kind in {"process", "trigger"}] == []
    for module in ("scsi_mod", "iwlwifi"):
        root.put(f"sys/module/{module}/sections/_ftrace_events")
    users = {(*modules, user.detail) for modules, user in root.search() if user.kind in {"process", "trigger"}}
    assert users == {
        ("scsi_mod", "pid 7 anon_inode:bpf_link raw_tracepoint scsi_eh_wakeup"),
        ("iwlwifi", "pid 7 anon_inode:bpf_link raw_tracepoint iwlwifi_dev_ioread32"),
    }


def test_an_event_of_a_system_that_is_not_known_may_be_of_a_module(root: FakeRoot) -> None:
    """A module has trace events, and none of those that the kernel lists has its name."""
    root.put("proc/modules", "snd_hda_codec 1 1 - Live 0x0\nbtrfs 1 1 - Live 0x0\n")
    root.put("sys/module/snd_hda_codec/sections/_ftrace_events")
    root.put("sys/kernel/tracing/available_events", "hda:hda_send_cmd\nbtrfs:btrfs_sync_fs\n")
    root.process(7, "/usr/bin/bpftrace", ("anon_inode:bpf_link",))
    root.put("proc/7/fdinfo/0", "link_type:\traw_tracepoint\ntp_name:\thda_send_cmd\n")
    users = [(set(modules), user.kind, user.detail, user.remedy) for modules, user in root.search()]
    detail = "pid 7 anon_inode:bpf_link raw_tracepoint hda_send_cmd, which may be one of its trace events"
    assert users == [({"snd_hda_codec"}, "candidate", detail, Remedy.NONE)]


SYMBOLS = """\
0000000000000000 T sched_fork
0000000000000000 D __tracepoint_sched_switch
0000000000000000 d __tracepoint_target_cmd_complete\t[target_core_mod]
0000000000000000 d __tracepoint_hda_send_cmd\t[snd_hda_codec]
0000000000000000 t target_submit\t[target_core_mod]
0000000000000000 t bpf_trampoline_208306010197\t[bpf]
"""


def test_a_trigger_of_a_system_that_has_not_its_modules_name(root: FakeRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """The symbols of modules tell whose event it is; where they cannot be read, that is said."""
    root.put("proc/modules", "target_core_mod 1 1 - Live 0x0\n")
    root.put("sys/module/target_core_mod/sections/_ftrace_events")
    root.put("sys/kernel/tracing/set_event", "target:target_cmd_complete\nsched:sched_switch\n")
    root.put("sys/kernel/tracing/dynamic_events", "e:mine/sync target.target_cmd_complete op=$opcode\n")
    for event in ("target/target_cmd_complete", "sched/sched_switch"):
        root.put(f"{EVENTS}/{event}/enable", "0*\n")
    lines = ("enable_event:target:target_cmd_complete:unlimited", "enable_event:sched:sched_switch:unlimited")
    root.put(f"{EVENTS}/oom/mark_victim/trigger", "\n".join(lines))
    budget = Budget()
    assert [user for _, user in root.search(budget)] == []
    assert budget.partial == "the kernel's symbols cannot be read"
    root.put("proc/1/root/proc/kallsyms", SYMBOLS)
    for piece in (1 << 20, 64):
        monkeypatch.setattr(tracing, "_PIECE", piece)
        users = [(set(modules), user.remedy, user.detail) for modules, user in root.search()]
        assert users == [
            ({"target_core_mod"}, Remedy.REMOVE_PROBE, "e:mine/sync target.target_cmd_complete op=$opcode"),
            ({"target_core_mod"}, Remedy.REMOVE_PROBE, lines[0]),
        ]


@pytest.mark.parametrize(
    ("line", "event"),
    [
        ("p:probe/hda_send_cmd snd_hda_codec:hda_send_cmd", "probe:hda_send_cmd"),
        ("p:btrfs/hda_send_cmd snd_hda_codec:hda_send_cmd", "btrfs:hda_send_cmd"),
        ("r4:probe/hda_send_cmd snd_hda_codec:hda_send_cmd", "probe:hda_send_cmd"),
        ("e:probe/hda_send_cmd sched.sched_switch", "probe:hda_send_cmd"),
        ("f:probe/hda_send_cmd hda_send_cmd", "probe:hda_send_cmd"),
        ("t:probe/hda_send_cmd hda_send_cmd", "probe:hda_send_cmd"),
        ("s:synthetic/hda_send_cmd\tu64 lat", "synthetic:hda_send_cmd"),
        ("u:hda_send_cmd u32 count", "user_events:hda_send_cmd"),
        (None, "probe:hda_send_cmd"),
    ],
)
def test_an_event_made_by_hand_is_no_modules(root: FakeRoot, line: str | None, event: str) -> None:
    """Such an event may have the name of a module's, and holds nothing of it (`None`: what was made cannot be read)."""
    root.put("proc/modules", "snd_hda_codec 1 1 - Live 0x0\nbtrfs 1 1 - Live 0x0\n")
    root.put("sys/module/snd_hda_codec/sections/_ftrace_events")
    root.put("proc/1/root/proc/kallsyms", SYMBOLS)
    if line is not None:
        root.put("sys/kernel/tracing/dynamic_events", f"{line}\n")
    root.put("sys/kernel/tracing/set_event", f"{event}\n")
    root.put(f"{EVENTS}/{event.replace(':', '/')}/enable", "0*\n")
    root.put(f"{EVENTS}/oom/mark_victim/trigger", f"enable_event:{event}:unlimited\n")
    budget = Budget()
    assert [user for _, user in root.search(budget)] == []
    assert budget.partial == ("" if line else "dynamic_events of tracefs cannot be read")


def test_symbols_are_not_read_where_names_tell(root: FakeRoot) -> None:
    root.put(f"{EVENTS}/sched/sched_switch/trigger", "enable_event:btrfs:btrfs_sync_fs:unlimited\n")
    budget = Budget()
    assert [user.kind for _, user in root.search(budget)] == ["trigger"]
    assert budget.partial == ""


def test_an_event_that_the_symbols_know(root: FakeRoot) -> None:
    root.put("proc/modules", "snd_hda_codec 1 1 - Live 0x0\nbtrfs 1 1 - Live 0x0\n")
    root.put("sys/module/snd_hda_codec/sections/_ftrace_events")
    root.put("proc/1/root/proc/kallsyms", SYMBOLS)
    root.process(7, "/usr/bin/bpftrace", ("anon_inode:bpf_link", "anon_inode:bpf_link"))
    for number, event in enumerate(("hda_send_cmd", "sched_switch")):
        root.put(f"proc/7/fdinfo/{number}", f"link_type:\traw_tracepoint\ntp_name:\t{event}\n")
    users = [(set(modules), user.kind, user.detail, user.remedy) for modules, user in root.search()]
    detail = "pid 7 anon_inode:bpf_link raw_tracepoint hda_send_cmd"
    assert users == [({"snd_hda_codec"}, "process", detail, Remedy.KILL)]


TRAMPOLINE = 48 << 32 | 1 << 31 | 96341
"""Of the type 96341 in the type information 48."""
ENABLED = (
    "btrfs_sync_fs [btrfs] (1) R   D\ttramp: ftrace_regs_caller+0x0/0x58 (call_direct_funcs+0x0/0x30)\n"
    f"\tdirect-->bpf_trampoline_{TRAMPOLINE}+0x0/0x1000\n"
    "do_exit (2) R  \tops: kprobe_ftrace_ops+0x0/0x1c0 \n"
)
OTHER = (
    f"dummy_xmit [dummy] (1) R   D\ttramp: ftrace_regs_caller+0x0/0x58\n\tdirect-->bpf_trampoline_{TRAMPOLINE + 7}\n"
)
COUNTED = ENABLED.replace(str(TRAMPOLINE), f"{TRAMPOLINE}_2")
"""As before Linux 6.4."""
LINK = "link_type:\ttracing\n"
ON_IT, MAY_BE = "tracing on a function of it", "tracing, which may be of one of its functions"


@pytest.mark.parametrize(
    ("information", "enabled", "trampolines", "expected"),
    [
        ("target_obj_id:\t48\ntarget_btf_id:\t96341\n", ENABLED, (), ("process", "tracing on btrfs_sync_fs")),
        ("target_obj_id:\t48\ntarget_btf_id:\t96341\n", ENABLED + OTHER, (), ("process", "tracing on btrfs_sync_fs")),
        ("target_obj_id:\t48\ntarget_btf_id:\t96348\n", ENABLED + OTHER, (), None),
        ("target_obj_id:\t49\ntarget_btf_id:\t96341\n", ENABLED, (), ("candidate", MAY_BE)),
        ("target_obj_id:\t1\ntarget_btf_id:\t96341\n", ENABLED, (), None),
        ("attach_type:\t24\n", ENABLED, (TRAMPOLINE,), ("process", ON_IT)),
        ("attach_type:\t24\n", ENABLED, (TRAMPOLINE, 5 << 32 | 9), ("candidate", MAY_BE)),
        ("attach_type:\t24\n", ENABLED + OTHER, (TRAMPOLINE, TRAMPOLINE + 7), ("candidate", MAY_BE)),
        ("attach_type:\t24\n", ENABLED, None, ("candidate", MAY_BE)),
        ("attach_type:\t24\n", OTHER, (TRAMPOLINE + 7,), None),
        ("attach_type:\t24\n", None, (TRAMPOLINE,), ("candidate", MAY_BE)),
        ("attach_type:\t24\n", COUNTED, (f"{TRAMPOLINE}_2",), ("process", ON_IT)),
        ("attach_type:\t24\n", COUNTED, (f"{TRAMPOLINE}_2", f"{TRAMPOLINE + 7}_1"), ("candidate", MAY_BE)),
        ("attach_type:\t24\n", "do_exit (2) R\n", (TRAMPOLINE,), ("candidate", MAY_BE)),
    ],
    ids=[
        *("named", "among others", "of another module", "of no function that is listed", "of the kernel"),
        *("the only one", "a program too", "two modules", "no symbols", "only another module", "no list"),
        *("named before 6.4", "two of them", "none in the list"),
    ],
)
def test_a_program_on_a_function(
    root: FakeRoot,
    information: str,
    enabled: str | None,
    trampolines: tuple[int | str, ...] | None,
    expected: tuple[str, str] | None,
) -> None:
    """It is certain where the kernel names the function, or where all trampolines are on functions of one module."""
    root.put("sys/kernel/btf/btrfs")
    if enabled is not None:
        root.put("sys/kernel/tracing/enabled_functions", enabled)
    if trampolines is not None:
        root.put(
            "proc/1/root/proc/kallsyms", "".join(f"0 t bpf_trampoline_{number}\t[bpf]\n" for number in trampolines)
        )
    root.process(7, "/usr/bin/bpftrace", ("anon_inode:bpf_link",))
    root.put("proc/7/fdinfo/0", f"{LINK}{information}")
    users = [user for modules, user in root.search() if modules == {"btrfs"}]
    assert [(user.kind, user.detail) for user in users] == (
        [(expected[0], f"pid 7 anon_inode:bpf_link {expected[1]}")] if expected else []
    )
    assert all((user.remedy is Remedy.KILL) == (user.kind == "process") for user in users)


@pytest.mark.parametrize(("enabled", "named"), [(ENABLED, True), (OTHER, False)])
def test_a_program_on_many_functions_may_be_of_a_module_that_is_traced(
    root: FakeRoot, enabled: str, named: bool
) -> None:
    root.put("sys/kernel/btf/btrfs")
    root.put("sys/kernel/tracing/enabled_functions", enabled)
    root.process(7, "/usr/bin/bpftrace", ("anon_inode:bpf_link",))
    root.put("proc/7/fdinfo/0", "link_type:\tkprobe_multi\n")
    assert [user.kind for _, user in root.search()] == ["candidate"] * named


def test_a_function_of_an_instance_that_enables_an_event(root: FakeRoot) -> None:
    root.put(
        "sys/kernel/tracing/instances/mine/set_ftrace_filter", "do_exit:enable_event:btrfs:btrfs_sync_fs:count=2\n"
    )
    root.put("sys/kernel/tracing/instances/mine/set_event", "btrfs:btrfs_sync_fs\n")
    root.put("sys/kernel/tracing/instances/mine/events/btrfs/btrfs_sync_fs/enable", "1*\n")
    path = "/sys/kernel/tracing/instances/mine/set_ftrace_filter"
    assert commands(root) == [
        f"""sh -c 'echo "$1" >>"$2"' sh '!do_exit:enable_event:btrfs:btrfs_sync_fs:count=2' {path}"""
    ]


@pytest.mark.parametrize(
    "words",
    [
        ("/sys/kernel/tracing/set_ftrace_filter",),
        ("/sys/kernel/tracing/../../etc/passwd", "!x:y"),
        ("/sys/kernel/tracing/instances/../set_ftrace_filter", "!x:y"),
        ("/sys/kernel/tracing/set_ftrace_filter", "do_exit"),
        ("/sys/kernel/tracing/set_ftrace_filter", "!x:\n"),
        ("/sys/kernel/tracing/dynamic_events", "-:a/b c"),
    ],
)
def test_nothing_else_is_written_into_tracefs(words: tuple[str, ...]) -> None:
    assert command(User("trigger", "", "", remedy=Remedy.REMOVE_PROBE, words=words)) == ""


def test_what_may_hold_it_is_said_where_nothing_else_is_known(root: FakeRoot) -> None:
    """A perf event, a link of BPF, what is pinned."""
    root.put("sys/kernel/btf/btrfs")
    root.put("sys/fs/bpf/mine/link")
    root.process(7, "/usr/bin/perf", ("anon_inode:[perf_event]", "anon_inode:bpf_link", "anon_inode:bpf_link"))
    root.put("proc/7/fdinfo/1", "link_type:\ttracing\ntarget_obj_id:\t1\n")
    root.put("proc/7/fdinfo/2", "link_type:\ttracing\ntarget_obj_id:\t80\n")
    found = {user.detail: (user.kind, user.remedy) for modules, user in root.search() if modules == {"btrfs"}}
    assert found == {
        "pid 7 anon_inode:[perf_event], which may be of one of its trace events": ("candidate", Remedy.NONE),
        "pid 7 anon_inode:bpf_link tracing, which may be of one of its functions": ("candidate", Remedy.NONE),
        "pinned, and what it is attached to is not known": ("pin", Remedy.NONE),
    }
    root.process(1, "/sbin/init", mountinfo="30 20 1:0 / /data rw - btrfs /dev/ram0 rw\n")
    assert [user.kind for modules, user in root.search() if modules == {"btrfs"}] == ["mount"]


@pytest.mark.parametrize(
    "link",
    [
        "link_type:\ttracing\ntarget_obj_id:\t48\ntarget_btf_id:\t96341\n",
        "link_type:\ttracing\nattach_type:\t24\n",
        "link_type:\traw_tracepoint\ntp_name:\tbtrfs_sync_fs\n",
    ],
)
def test_a_link_that_is_open_may_be_pinned_too(root: FakeRoot, link: str) -> None:
    """Then it stays when the process ends."""
    root.put("sys/kernel/btf/btrfs")
    root.put("sys/fs/bpf/mine/link")
    root.put("sys/kernel/tracing/available_events", "btrfs:btrfs_sync_fs\n")
    root.put("sys/kernel/tracing/enabled_functions", ENABLED)
    root.put("proc/1/root/proc/kallsyms", f"0 t bpf_trampoline_{TRAMPOLINE}\t[bpf]\n")
    root.process(7, "/usr/bin/bpftrace", ("anon_inode:bpf_link",))
    root.put("proc/7/fdinfo/0", link)
    assert [user.kind for modules, user in root.search() if modules == {"btrfs"}] == ["process", "pin"]


def test_a_program_on_a_tracepoint(root: FakeRoot) -> None:
    root.put("sys/kernel/tracing/available_events", "sched:sched_switch\nbtrfs:btrfs_sync_fs\n")
    root.process(7, "/usr/bin/bpftrace", ("anon_inode:bpf_link", "anon_inode:bpf_link"))
    root.put("proc/7/fdinfo/0", "pos:\t0\nlink_type:\traw_tracepoint\nlink_id:\t3\ntp_name:\tbtrfs_sync_fs\n")
    root.put("proc/7/fdinfo/1", "pos:\t0\nlink_type:\traw_tracepoint\nlink_id:\t4\ntp_name:\tsched_switch\n")
    users = [user for modules, user in root.search() if modules == {"btrfs"}]
    assert [(user.detail, user.remedy) for user in users] == [
        ("pid 7 anon_inode:bpf_link raw_tracepoint btrfs_sync_fs", Remedy.KILL)
    ]


# --- algorithms -------------------------------------------------------------------------------------------------------


def crypto(*rows: tuple[str, str, str, int]) -> str:
    """/proc/crypto, of names, modules, types and references."""
    return "\n".join(f"name : {n}\ndriver : {n}-x\nmodule : {m}\nrefcnt : {r}\ntype : {t}\n" for n, m, t, r in rows)


LOADED = {"aesni_intel": 1, "dm_crypt": 1, "xxhash_generic": 1, "tls": 1, "algif_hash": 0}
XTS, GCM = ("xts(aes)", "aesni_intel", "skcipher", 2), ("gcm(aes)", "aesni_intel", "aead", 2)


def algorithms(path: Path, *rows: tuple[str, str, str, int], **loaded: int) -> Algorithms:
    (path / "proc").mkdir(exist_ok=True)
    (path / "proc/crypto").write_text(crypto(*rows))
    return Algorithms(path, LOADED | loaded)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (XTS, {"aesni_intel"}),
        (("xts(aes)", "aesni_intel", "skcipher", 1), set()),
        (("xts(aes)", "aesni_intel", "skcipher", 3), set()),
        (("xts(aes)", "kernel", "skcipher", 2), set()),
        (("sha256", "xxhash_generic", "shash", 2), set()),
    ],
    ids=["one use", "no use", "further uses", "built in", "of another type"],
)
def test_algorithm_of_an_encrypted_disk(tmp_path: Path, row: tuple[str, str, str, int], expected: set[str]) -> None:
    assert algorithms(tmp_path, row).of_only_user("dm_crypt") == expected


def test_an_encrypted_disk_is_not_blamed_for_what_something_else_may_use(tmp_path: Path) -> None:
    """Two consumers of one algorithm, and two algorithms: fscrypt and other parts of the kernel are in no table."""
    assert algorithms(tmp_path, XTS, dm_crypt=2).of_only_user("dm_crypt") == set(), "two disks"
    built_in = ("cts(cbc(aes))", "kernel", "skcipher", 2)
    for other in (built_in, ("chacha20", "tls", "skcipher", 2), GCM):
        assert algorithms(tmp_path, XTS, other).of_only_user("dm_crypt") == set()


def test_a_part_of_another_algorithm_is_nothing_that_a_disk_has_chosen(tmp_path: Path) -> None:
    """And what the chosen one is made of is held with it."""
    rows = [
        ("name : xts(aes)", "xts(ecb-aes-x)", "tls", "skcipher", 2),
        ("name : ecb(aes)", "ecb-aes-x", "aesni_intel", "skcipher", 2),
        ("name : __ecb(aes)", "__ecb-aes-x", "xxhash_generic", "skcipher", 2),
    ]
    (tmp_path / "proc").mkdir()
    for uses, expected in ((2, {"tls", "aesni_intel"}), (3, set())):
        rows[1] = (*rows[1][:4], uses)
        text = (f"{n}\ndriver : {d}\nmodule : {m}\nrefcnt : {r}\ntype : {t}\n" for n, d, m, t, r in rows)
        (tmp_path / "proc/crypto").write_text("\n".join(text))
        assert Algorithms(tmp_path, LOADED).of_only_user("dm_crypt") == expected, uses


def test_algorithm_by_its_name(tmp_path: Path) -> None:
    """A socket with gcm(aes) holds no ccm(aes) that another one uses, although both are made of AES."""
    ccm, ctr = ("ccm(aes)", "ccm", "aead", 2), ("ctr(aes)", "ctr", "skcipher", 2)
    used = algorithms(tmp_path, GCM, ccm, ctr, ccm=0, ctr=0)
    assert used.of_name("gcm(aes)") == {"aesni_intel"}
    assert used.of_name("rfc7539(chacha20,poly1305)") == used.of_name("") == set()
    assert used.consumers(used.used[0]) == ("tls", "dm_crypt")
    twice = algorithms(tmp_path, GCM, ("gcm(aes)", "gcm", "aead", 2), gcm=0)
    assert twice.of_name("gcm(aes)") == set(), "of two drivers either may be it"


@pytest.mark.parametrize(
    ("uses", "associations", "expected"),
    [
        (1, {5: 1}, ["sec5"]),
        (5, {5: 2, 6: 3}, ["sec5", "sec6"]),
        (2, {5: 1}, ["sec5", "perhaps"]),
        (1, {5: 0, 6: 0}, ["perhaps"]),
        (1, {}, ["perhaps"]),
        (1, OSError(), ["perhaps"]),
    ],
    ids=["a key", "two interfaces", "something else too", "without a key", "in another namespace", "not to be had"],
)
def test_cipher_of_an_interface_with_macsec(
    tmp_path: Path, uses: int, associations: dict[int, int] | OSError, expected: list[str]
) -> None:
    """Each association has one; an interface without any has none, and what is not explained has no command."""
    root = FakeRoot(tmp_path)
    root.put("proc/modules", "aesni_intel 1 1 - Live 0x0\nmacsec 1 0 - Live 0x0\ntls 1 1 - Live 0x0\n")
    gcm = ("gcm(aes)", "aesni_intel", "aead", 1 + uses)
    root.put("proc/crypto", crypto(gcm, ("xts(aes)", "kernel", "skcipher", 2)))
    root.kinds, root.associations = {"sec5": "macsec", "sec6": "macsec"}, associations
    for number in (5, 6):
        root.put(f"sys/class/net/sec{number}/ifindex", f"{number}\n")
    budget = Budget()
    users = [user for modules, user in root.search(budget) if "aesni_intel" in modules]
    rows = [user.name for user in users if user.kind == "netdev" and user.remedy is Remedy.DELETE_LINK]
    (cipher,) = (user for user in users if user.kind == "crypto")
    assert rows + ["perhaps"] * (cipher.remedy is Remedy.NONE) == expected
    assert ("perhaps through macsec, tls" in cipher.detail) == ("perhaps" in expected)
    assert bool(budget.partial) == isinstance(associations, OSError)


def test_another_algorithm_of_the_module_does_not_end_with_macsec(tmp_path: Path) -> None:
    root = FakeRoot(tmp_path)
    root.put("proc/modules", "aesni_intel 1 2 - Live 0x0\nmacsec 1 0 - Live 0x0\n")
    root.put("proc/crypto", crypto(GCM, XTS))
    root.kinds, root.associations = {"sec5": "macsec"}, {5: 1}
    root.put("sys/class/net/sec5/ifindex", "5\n")
    rows = [user for modules, user in root.search() if "aesni_intel" in modules and user.kind == "crypto"]
    assert [(user.name, user.remedy) for user in rows] == [
        ("gcm(aes)", Remedy.NOT_NEEDED),
        ("xts(aes)", Remedy.NONE),
    ]


def test_associations_of_macsec(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel dumps them: one to send by, two to receive by; and an interface with a channel but without a key."""

    def interface(index: int, sending: int, *receiving: int) -> bytes:
        def several(count: int) -> bytes:
            return b"".join(attribute(number, attribute(1, b"\1")) for number in range(1, count + 1))

        channels = [attribute(1, b"\2" * 8) + attribute(3, several(count)) for count in receiving]
        listed = b"".join(attribute(number, channel) for number, channel in enumerate(channels, 1))
        return (
            b"\0\1\0\0"
            + attribute(1, struct.pack("=I", index))
            + attribute(4, attribute(1, b"\3" * 8))
            + attribute(5, several(sending))
            + attribute(6, listed)
        )

    other = b"\1\2\0\0" + attribute(2, b"nlctrl\0") + attribute(1, b"\x10\0")
    family = b"\1\2\0\0" + attribute(2, b"macsec\0") + attribute(1, b"\x20\0")
    answers = {16: [(16, other), (16, family)], 32: [(32, interface(5, 1, 2)), (32, interface(6, 0, 0))]}
    monkeypatch.setattr(netlink, "dump", lambda _, kind, __: answers[kind])
    assert macsec_associations() == {5: 3, 6: 0}
    answers[16] = [(16, other)]
    assert macsec_associations() == {}


def test_algorithm_of_a_socket(tmp_path: Path) -> None:
    """It is known where one socket alone is bound, and one algorithm alone can be it."""

    def uses(*rows: tuple[str, str, str, int], af_alg: int = 2, **loaded: int) -> list[tuple[set[str], bool]]:
        known = algorithms(tmp_path, *rows, dm_crypt=0, **loaded)
        counts = LOADED | loaded | {"af_alg": af_alg}
        (tmp_path / "proc/modules").write_text("".join(f"{n} 1 {count} - Live 0x0\n" for n, count in counts.items()))
        sockets = SocketModules(tmp_path, counts, algorithms=known)
        return [
            (set(use.modules), not use.doubt)
            for use in sockets.bound({"7": frozenset({5})})
            if use.modules & {"aesni_intel", "xxhash_generic"}
        ]

    blake, crc = ("blake2b-256", "xxhash_generic", "shash", 2), ("crc32c", "kernel", "shash", 2)
    assert uses(XTS, algif_skcipher=1) == [({"aesni_intel"}, True)]
    assert uses(XTS, algif_skcipher=2) == [({"aesni_intel"}, False)], "two sockets"
    assert uses(XTS, algif_skcipher=1, af_alg=4) == [({"aesni_intel"}, False)], "another one, which may be it"
    assert uses(blake, crc, algif_hash=1, libcrc32c=0) == [({"xxhash_generic"}, False)], "it may be bound to crc32c"
    assert uses(blake, algif_hash=1, algif_skcipher=1) == [({"xxhash_generic"}, False)]


@pytest.mark.parametrize(("several", "expected"), [(False, [Remedy.REMOVE_MAPPING]), (True, [])])
def test_the_cipher_of_one_encrypted_disk_is_known(tmp_path: Path, several: bool, expected: list[Remedy]) -> None:
    root = FakeRoot(tmp_path)
    root.put("proc/modules", "aesni_intel 1 1 - Live 0x0\ndm_crypt 1 1 - Live 0x0\ndm_mod 1 1 - Live 0x0\n")
    root.put("proc/crypto", crypto(XTS))
    for number in range(1 + several):
        root.put(f"sys/block/dm-{number}/dev", f"254:{number}\n")
        root.put(f"sys/block/dm-{number}/dm/name", f"secret{number}\n")
        root.put(f"sys/block/dm-{number}/dm/uuid", f"CRYPT-LUKS2-{number}\n")
        root.link(f"sys/dev/block/254:{number}", str(root.path / f"sys/block/dm-{number}"))
    users = [user for modules, user in root.search() if "aesni_intel" in modules]
    assert [user.remedy for user in users if user.kind == "block"] == expected
    (row,) = (user for user in users if user.kind == "crypto")
    assert row.detail == f"driver xts(aes)-x, used 1 times{', perhaps through dm_crypt' if several else ''}"


def test_cipher_of_tls() -> None:
    information = attribute(1, b"tls\0") + attribute(2, attribute(2, (52).to_bytes(2, "little")))
    message = b"\0" * 68 + (77).to_bytes(4, "little") + attribute(19, information)
    assert list(read_socket(message)) == [TcpUse(77, "tls", "tls", "gcm(aes)")]


def test_checksum_of_btrfs(tmp_path: Path) -> None:
    root = FakeRoot(tmp_path)
    root.put("proc/modules", "xxhash_generic 1 1 - Live 0x0\nbtrfs 1 1 - Live 0x0\n")
    root.put("proc/crypto", crypto(("xxhash64", "xxhash_generic", "shash", 2)))
    root.put("sys/fs/btrfs/some-uuid/checksum", "xxhash64 (xxhash64-x)\n")
    root.put("sys/fs/btrfs/some-uuid/devices/ram0")
    root.process(1, "/sbin/init", mountinfo="30 20 0:40 / /data rw - btrfs /dev/ram0 rw\n")
    users = [user for modules, user in root.search() if "xxhash_generic" in modules]
    assert [(user.kind, user.remedy) for user in users] == [
        ("mount", Remedy.UNMOUNT),
        ("crypto", Remedy.NOT_NEEDED),
    ]
