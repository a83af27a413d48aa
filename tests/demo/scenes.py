# SPDX-License-Identifier: LGPL-2.1-or-later
"""The tour: what a person is shown, in order. Every line is really typed into the virtual machine."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Line:
    """A command, who types it, and with which exit code it has to end."""

    text: str
    user: str = "root"
    code: int = 0


@dataclass(frozen=True, slots=True)
class Scene:
    """A headline and its commands; `setup` is run unseen before."""

    title: str
    lines: tuple[Line, ...]
    setup: tuple[str, ...] = field(default=())


CURL = 'curl -s --unix-socket /run/kmodd-gateway/http -H "Authorization: Bearer $(cat /root/gateway-token)"'

LAB = """\
[module.tun]
state = "loaded"
reason = "VPN"

[module.loop]
state = "absent"
"""

RECEIVER = Path(__file__).parents[1] / "system" / "guest_receiver.py"
NOTIFY = """\
allow-networks = ["127.0.0.0/8"]      # otherwise no inner address is ever connected to

[webhook.chat]
url = "http://127.0.0.1:8099/"
allow-http = true
format = "chat"

[[rule]]
events = ["failure", "crash", "stuck"]
notify = ["chat"]
"""

NOTIFIER = "busctl call org.kmodd1.Notifier /org/kmodd1/Notifier org.kmodd1.Notifier"

BIND = (
    """python3 -c "import socket; socket.socket(38, 5).bind(('aead', 'gcm(aes)')); print('bound')" 2>&1 | tail -n 1"""
)
"""Has the kernel load algif_aead, by name."""

TOUR = (
    Scene(
        "A system service like any other",
        (
            Line("systemctl status kmodd --no-pager --lines=0"),
            Line("busctl get-property org.kmodd1 /org/kmodd1 org.kmodd1.Manager KernelRelease LoadedCount Health"),
        ),
    ),
    Scene(
        "Load a module with nothing but busctl; see it as an object",
        (
            Line("busctl call org.kmodd1 /org/kmodd1 org.kmodd1.Manager Load 'sa{ss}a{sv}' dummy 1 numdummies 2 0"),
            Line("busctl get-property org.kmodd1 /org/kmodd1/module/dummy org.kmodd1.Module State Size References"),
            Line("busctl call org.kmodd1 /org/kmodd1 org.kmodd1.Manager Unload 'sa{sv}' dummy 0"),
        ),
    ),
    Scene(
        "See beforehand exactly what will happen, then do it",
        (
            Line("kmodctl load vfat --dry-run"),
            Line('kmodctl load vfat --reason "a stick to read"'),
            Line("kmodctl load vfat codepage=utf8", code=9),
        ),
    ),
    Scene(
        "Who may do what is polkit's business",
        (
            Line("kmodctl load loop --no-ask-password", user="alice", code=4),
            Line("cat /etc/polkit-1/rules.d/50-netadm-dummy.rules"),
            Line("id -nG && kmodctl load dummy", user="bob"),
            Line("kmodctl load loop --no-ask-password", user="bob", code=4),
        ),
        setup=(
            "install -m 0644 /usr/src/kmodd/polkit/examples/50-netadm-dummy.rules /etc/polkit-1/rules.d/",
            "systemctl reload-or-restart polkit",
        ),
    ),
    Scene(
        "A busy module, explained",
        (
            Line("rmmod overlay", code=1),
            Line("kmodctl unload overlay", code=5),
            Line("kmodctl why overlay"),
        ),
        setup=(
            "mkdir -p /srv/lower /srv/upper /srv/work /srv/merged",
            "mount -t overlay overlay -o lowerdir=/srv/lower,upperdir=/srv/upper,workdir=/srv/work /srv/merged",
        ),
    ),
    Scene(
        "A rule of the firewall, an interface in a container, a module that the kernel needed",
        (
            Line("rmmod nft_ct", code=1),
            Line("kmodctl why nft_ct"),
            Line("nft delete rule inet shop in handle 2 && kmodctl unload nft_ct"),
            Line("kmodctl unload dummy", code=5),
            Line("kmodctl why dummy"),
            Line("mount -o loop,iocharset=ascii /srv/stick /mnt && kmodctl why nls_ascii"),
            Line("umount /mnt && kmodctl unload nls_ascii"),
        ),
        setup=(
            "systemctl add-wants kmodd.service kmodd-watcher.socket && systemctl restart kmodd",
            "until pgrep -f '[w]atcher/watcher.py$' >/dev/null; do sleep 0.3; done",
            "nft 'add table inet shop; add chain inet shop in; add rule inet shop in ct state established accept'",
            "ip netns add container && ip -n container link add eth0 type dummy && ip -n container link set eth0 up",
            "truncate -s 8M /srv/stick && mkfs.vfat /srv/stick >/dev/null",
        ),
    ),
    Scene(
        "A vulnerability in a module that any user can have loaded, answered",
        (
            Line(BIND, user="alice"),
            Line("kmodctl respond CVE-2026-31431"),
            Line("kmodctl respond --module algif_aead --probe --reason 'in case it is not'"),
            Line(BIND, user="alice"),
            Line("sleep 4; kmodctl surface refused"),
            Line("kmodctl respond end module:algif_aead"),
        ),
    ),
    Scene(
        "The same over HTTP, for whoever has a token",
        (
            Line(f"{CURL} -X POST http://localhost/module/load/loop; echo"),
            Line(f"{CURL} -X POST http://localhost/module/unload/overlay | python3 -m json.tool"),
            Line(
                "curl -sS --unix-socket /run/kmodd-gateway/http -X POST http://localhost/module/load/loop",
                user="alice",
                code=7,
            ),
        ),
    ),
    Scene(
        "What the machine should be, and what it is",
        (
            Line("cat /etc/kmodd/modules.d/lab.toml"),
            Line("kmodctl config drift"),
            Line("kmodctl config apply --dry-run"),
        ),
        setup=(
            f"mkdir -p /etc/kmodd/modules.d && cat > /etc/kmodd/modules.d/lab.toml <<'END'\n{LAB}END",
            "systemctl reload kmodd",
        ),
    ),
    Scene(
        "A module that hangs in the kernel: the caller is told, the rest goes on",
        (
            Line("kmodctl load kmodd_test_init_wait --timeout 2", code=12),
            Line("kmodctl unload vfat --unused-dependencies"),
            Line("kmodctl status"),
            Line(
                "echo 1 > /sys/kernel/kmodd_test_init_wait/release; sleep 1; kmodctl reset-failed kmodd_test_init_wait"
            ),
        ),
    ),
    Scene(
        "All or nothing",
        (
            Line("printf 'load bonding max_bonds=0\\nload tun\\nload kmodd_test_fail\\n' | kmodctl batch -", code=10),
            Line("grep -wE 'bonding|tun' /proc/modules", code=1),
        ),
    ),
    Scene(
        "Somebody elsewhere is told: here a chat service that is played by a few lines of Python",
        (
            Line("cat /etc/kmodd/notify.toml"),
            Line("kmodctl load kmodd_test_fail --reason 'to be told'", code=10),
            Line("until grep -o '\"body\".*' /root/told; do sleep 0.3; done"),
            Line("kmodctl notify status"),
        ),
        setup=(
            "touch /root/told",
            f"printf %s {shlex.quote(RECEIVER.read_text())} > /opt/receiver.py",
            "systemd-run -q --unit=chat python3 /opt/receiver.py http /root/told",
            "mkdir -p /etc/kmodd",
            f"printf %s {shlex.quote(NOTIFY)} > /etc/kmodd/notify.toml",
            # What was before its very first look is nobody's news.
            f"until {NOTIFIER} GetStatus | grep -q '\"seen\" t [1-9]'; do sleep 0.3; done",
        ),
    ),
    Scene(
        "Who did what, why, and how it went: modprobe's doings too",
        (
            Line("modprobe dummy && rmmod dummy"),
            Line("kmodctl log"),
            Line("journalctl -t kmodd -x -n 1 KMODD_EVENT=authorization.denied --no-pager"),
        ),
    ),
)
