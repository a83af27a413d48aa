# SPDX-License-Identifier: LGPL-2.1-or-later
"""The modules and modprobe.d files of the simulated kernel, modelled on Debian's."""

import errno

from kmodd.kernel.simulated.modules import Fault, SimulatedModule, SimulatedParameter, fault_modules, parameter
from kmodd.model import Consequence, ConsequenceKind, Remedy, Rule, User
from kmodd.names import ModuleName


def catalogue() -> tuple[SimulatedModule, ...]:
    """About sixty modules: Debian's own, some built in, and one for every fault."""
    return (*_storage(), *_network(), *_devices(), *_built_in(), *fault_modules())


def rules() -> tuple[Rule, ...]:
    """The modprobe.d that the catalogue comes with."""
    lines = (
        ("blacklist", "pcspkr", "", "/etc/modprobe.d/blacklist.conf", 3, "blacklist pcspkr"),
        ("install", "dccp", "/bin/false", "/etc/modprobe.d/hardening.conf", 2, "install dccp /bin/false"),
        ("options", "bonding", "max_bonds=0", "/usr/lib/modprobe.d/systemd.conf", 12, "options bonding max_bonds=0"),
        ("options", "dummy", "numdummies=0", "/usr/lib/modprobe.d/systemd.conf", 15, "options dummy numdummies=0"),
    )
    return tuple(Rule(*line) for line in lines)


INITIALLY_LOADED = tuple(
    ModuleName(name)
    for name in ("crc16", "mbcache", "jbd2", "ext4", "virtio_net", "fuse", "snd_timer", "snd_pcm", "snd_hda_intel")
)
"""What a machine that has just booted holds; insertion order."""


def _storage() -> tuple[SimulatedModule, ...]:
    fs, block = "fs", "drivers/block"
    return (
        SimulatedModule("crc16", "CRC16 calculations", "lib"),
        SimulatedModule("mbcache", "Meta block cache (for extended attributes)", fs),
        SimulatedModule("jbd2", "Generic filesystem journal-writing module", f"{fs}/jbd2", size=172032),
        SimulatedModule(
            "ext4",
            "Fourth Extended Filesystem",
            f"{fs}/ext4",
            ("jbd2", "mbcache", "crc16"),
            ("crc32c",),
            aliases=("fs-ext4", "ext3", "fs-ext3", "ext2", "fs-ext2"),
            size=987136,
            users=(User("mount", "/", "/dev/vda1"),),
        ),
        SimulatedModule("fat", "FAT file system library", f"{fs}/fat", size=90112),
        SimulatedModule("vfat", "VFAT filesystem support", f"{fs}/fat", ("fat",), aliases=("fs-vfat",), size=20480),
        SimulatedModule("msdos", "MS-DOS filesystem support", f"{fs}/fat", ("fat",), aliases=("fs-msdos",)),
        SimulatedModule(
            "overlay",
            "Overlay filesystem",
            f"{fs}/overlayfs",
            aliases=("fs-overlay",),
            parameters=(
                parameter("redirect_dir", "bool", "N", "Default to on or off for the redirect_dir feature", 0o644),
                parameter("redirect_max", "ushort", "256", "Maximum length of absolute redirect xattr value", 0o644),
                parameter("metacopy", "bool", "N", "Default to on or off for the metadata only copy up feature", 0o644),
            ),
            size=163840,
        ),
        SimulatedModule(
            "fuse", "Filesystem in Userspace", f"{fs}/fuse", aliases=("fs-fuse", "devname:fuse"), size=176128
        ),
        SimulatedModule(
            "loop",
            "Loopback device support",
            block,
            aliases=("devname:loop-control", "char-major-10-237", "block-major-7-*"),
            parameters=(
                parameter("max_loop", "int", "8", "Maximum number of loop devices"),
                SimulatedParameter(
                    "max_part", "int", "Maximum number of partitions per loop device", "0", rounds_up_to_mask=True
                ),
                parameter("hw_queue_depth", "int", "128", "Queue depth for each hardware queue. Default: 128"),
            ),
            size=32768,
            init_log=("loop: module loaded",),
        ),
        SimulatedModule(
            "zram",
            "Compressed RAM Block Device",
            f"{block}/zram",
            ("zsmalloc",),
            parameters=(parameter("num_devices", "uint", "1", "Number of pre-created zram devices"),),
            size=36864,
            init_log=("zram: Added device: zram0",),
        ),
        SimulatedModule("zsmalloc", "Memory allocator for compressed pages", "mm"),
        SimulatedModule(
            "brd",
            "RAM disk",
            block,
            aliases=("block-major-1-*", "rd"),
            parameters=(
                parameter("rd_nr", "int", "16", "Maximum number of brd devices"),
                parameter("rd_size", "ulong", "16384"),
            ),
        ),
        SimulatedModule("crc32c_generic", "CRC32c calculations", "crypto", aliases=("crc32c", "crypto-crc32c")),
    )


def _network() -> tuple[SimulatedModule, ...]:
    net = "drivers/net"
    return (
        SimulatedModule(
            "dummy",
            "Dummy netdevice driver which discards all packets sent to it",
            net,
            aliases=("rtnl-link-dummy",),
            parameters=(parameter("numdummies", "int", "1", "Number of dummy pseudo devices", 0),),
        ),
        SimulatedModule("veth", "Virtual Ethernet Tunnel", net, aliases=("rtnl-link-veth",), size=32768),
        SimulatedModule(
            "tun",
            "Universal TUN/TAP device driver",
            net,
            aliases=("devname:net/tun", "char-major-10-200"),
            size=61440,
            init_log=("tun: Universal TUN/TAP device driver, 1.6",),
        ),
        SimulatedModule(
            "bonding",
            "Ethernet Channel Bonding Driver",
            f"{net}/bonding",
            ("tls",),
            aliases=("rtnl-link-bond",),
            parameters=(
                parameter("max_bonds", "int", "1", "Max number of bonded devices", 0),
                parameter("mode", "charp", "(null)", "Mode of operation; 0 for balance-rr, 1 for active-backup", 0),
                parameter("miimon", "int", "0", "Link check interval in milliseconds", 0),
                parameter("arp_ip_target", "array of charp", "(null)", "arp targets in n.n.n.n form", 0, 16),
            ),
            size=192512,
        ),
        SimulatedModule("tls", "Transport Layer Security Support", "net/tls", aliases=("tcp-ulp-tls",), size=135168),
        SimulatedModule("llc", "LLC IEEE 802.2 core support", "net/llc"),
        SimulatedModule("stp", "STP protocol demux", "net/802", ("llc",)),
        SimulatedModule(
            "bridge",
            "Ethernet bridge driver",
            "net/bridge",
            ("stp", "llc"),
            aliases=("rtnl-link-bridge",),
            version="2.3",
            size=311296,
            init_log=("bridge: filtering via arp/ip/ip6tables is no longer available by default.",),
        ),
        SimulatedModule("br_netfilter", "Linux ethernet netfilter firewall bridge", "net/bridge", ("bridge",)),
        SimulatedModule("nfnetlink", "Netfilter messages via netlink socket", "net/netfilter"),
        SimulatedModule("nf_defrag_ipv4", "IPv4 packet reassembly", "net/ipv4/netfilter"),
        SimulatedModule(
            "nf_conntrack",
            "Netfilter connection tracking",
            "net/netfilter",
            ("nf_defrag_ipv4",),
            parameters=(
                parameter("hashsize", "uint", "16384", "", 0o600),
                parameter("acct", "bool", "N", "Enable connection tracking flow accounting.", 0o644),
                parameter("expect_hashsize", "uint", "256"),
            ),
            size=188416,
        ),
        SimulatedModule("nf_nat", "Network address translation core", "net/netfilter", ("nf_conntrack",), size=57344),
        SimulatedModule("nf_tables", "nftables", "net/netfilter", ("nfnetlink",), size=303104),
        SimulatedModule("nft_nat", "Network Address Translation support", "net/netfilter", ("nf_nat", "nf_tables")),
        SimulatedModule(
            "virtio_net",
            "Virtio network driver",
            net,
            aliases=("virtio:d00000001v*",),
            parameters=(
                parameter("napi_tx", "bool", "Y", "", 0o644),
                parameter("csum", "bool", "Y"),
                parameter("gso", "bool", "Y"),
            ),
            size=73728,
            users=(User("netdev", "eth0", "virtio0", remedy=Remedy.SET_LINK_DOWN, target="eth0"),),
        ),
        SimulatedModule(
            "e1000",
            "Intel(R) PRO/1000 Network Driver",
            f"{net}/ethernet/intel/e1000",
            aliases=("pci:v00008086d0000100Esv*sd*bc*sc*i*", "pci:v00008086d00001004sv*sd*bc*sc*i*"),
            parameters=(
                parameter("debug", "int", "-1", "Debug level (0=none,...,16=all)", 0),
                parameter("copybreak", "uint", "256", "", 0o644),
            ),
            size=167936,
            init_log=("e1000: Intel(R) PRO/1000 Network Driver",),
        ),
        SimulatedModule(
            "dccp", "DCCP - Datagram Congestion Controlled Protocol", "net/dccp", aliases=("net-pf-2-proto-33",)
        ),
        SimulatedModule(
            "wireguard",
            "WireGuard secure network tunnel",
            f"{net}/wireguard",
            aliases=("rtnl-link-wireguard",),
            version="1.0.0",
            consequences=(Consequence(ConsequenceKind.INTERFACE, "wg0", up=True, addresses=("10.9.0.1/24",)),),
        ),
    )


def _devices() -> tuple[SimulatedModule, ...]:
    sound = "sound/core"
    return (
        SimulatedModule("soundcore", "Core sound module", "sound", aliases=("char-major-14-*",)),
        SimulatedModule(
            "snd",
            "Advanced Linux Sound Architecture driver for soundcards.",
            sound,
            ("soundcore",),
            aliases=("char-major-116-*",),
            parameters=(
                parameter("major", "int", "116"),
                parameter("cards_limit", "int", "1"),
                parameter("slots", "array of charp", "(null)", "", 0o444, 32),
            ),
            size=126976,
        ),
        SimulatedModule("snd_timer", "ALSA timer interface", sound, ("snd",), size=49152),
        SimulatedModule("snd_pcm", "Midlevel PCM code for ALSA.", sound, ("snd_timer", "snd"), size=159744),
        SimulatedModule(
            "snd_hda_codec_generic", "Generic HD-audio codec parser", "sound/pci/hda", ("snd_pcm",), size=98304
        ),
        SimulatedModule(
            "snd_hda_intel",
            "Intel HDA driver",
            "sound/pci/hda",
            ("snd_pcm",),
            ("snd_hda_codec_generic",),
            aliases=("pci:v00008086d00002668sv*sd*bc*sc*i*",),
            parameters=(
                parameter("index", "array of int", "-1", "Index value for Intel HD audio interface.", 0o444, 32),
                parameter("power_save", "int", "1", "Automatic power-saving timeout (in second, 0 = disable).", 0o644),
                parameter("enable", "array of bool", "Y", "Enable Intel HD audio interface.", 0o444, 32),
            ),
            size=57344,
        ),
        SimulatedModule(
            "snd_seq",
            "Advanced Linux Sound Architecture sequencer.",
            sound,
            ("snd_timer", "snd"),
            softdep_post=("snd_seq_dummy",),
        ),
        SimulatedModule("snd_seq_dummy", "ALSA sequencer MIDI-through client", sound, ("snd_seq",)),
        SimulatedModule(
            "uinput",
            "User level driver support for input subsystem",
            "drivers/input/misc",
            aliases=("devname:uinput", "char-major-10-223"),
        ),
        SimulatedModule("pcspkr", "PC Speaker beeper driver", "drivers/input/misc", aliases=("platform:pcspkr",)),
        SimulatedModule(
            "softdog",
            "Software Watchdog Device Driver",
            "drivers/watchdog",
            parameters=(
                parameter("soft_margin", "uint", "60", "Watchdog soft_margin in seconds."),
                parameter("nowayout", "bool", "N", "Watchdog cannot be stopped once started"),
                parameter("soft_reboot_cmd", "charp", "(null)", "Set reboot command.", 0),
            ),
        ),
        SimulatedModule(
            "kvm_intel",
            "KVM support for VMX-capable processors",
            "arch/x86/kvm",
            init=Fault(errno=errno.EOPNOTSUPP, log=("kvm: no hardware support",)),
            size=380928,
        ),
        SimulatedModule("i8k", "Dell laptop SMM BIOS hwmon driver", "drivers/hwmon", init=Fault(errno=errno.ENODEV)),
        SimulatedModule(
            "nvidia",
            "NVIDIA display driver as an example of what is out of tree and not signed",
            "updates/dkms",
            license="NVIDIA",
            version="525.147.05",
            signed=False,
            intree=False,
            size=56811520,
            aliases=("pci:v000010DEd*sv*sd*bc03sc00i00*",),
        ),
    )


def _built_in() -> tuple[SimulatedModule, ...]:
    return (
        SimulatedModule(
            "kernel",
            builtin=True,
            parameters=(parameter("panic", "int", "0", "", 0o644), parameter("panic_on_warn", "int", "0", "", 0o644)),
        ),
        SimulatedModule("printk", builtin=True, parameters=(parameter("time", "bool", "Y", "", 0o644),)),
        SimulatedModule("module", builtin=True, parameters=(parameter("sig_enforce", "bool", "N", "", 0o644),)),
        SimulatedModule("unix", "UNIX domain sockets", builtin=True, aliases=("net-pf-1",)),
        SimulatedModule(
            "virtio_pci", "virtio-pci", builtin=True, version="1", parameters=(parameter("force_legacy", "bool", "N"),)
        ),
        SimulatedModule(
            "squashfs", "squashfs 4.0, a compressed read-only filesystem", builtin=True, aliases=("fs-squashfs",)
        ),
    )
