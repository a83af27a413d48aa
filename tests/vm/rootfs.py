"""The first layer: a root file system of the suite as a tar file, and the headers of its kernel.

Made by mmdebstrap from the package sources this machine is configured with, or, for another suite, from its mirror. It
depends on the package list alone, so that a change of a test module or of the guest's configuration does not fetch it again.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tests.vm import cache, host, privilege, suite
from tests.vm.progress import say

if TYPE_CHECKING:
    from collections.abc import Iterable

PACKAGES = """\
systemd systemd-sysv libpam-systemd dbus polkitd udev kmod apparmor
python3 python3-dbus-next python3-systemd python3-pyudev python3-structlog
python3-fastapi python3-uvicorn python3-jwt python3-cryptography python3-prometheus-client python3-aiosmtpd
linux-image-cloud-amd64 initramfs-tools
libglib2.0-bin python3-gi gir1.2-glib-2.0
iproute2 curl make man-db less bash-completion zsh fish procps psmisc e2fsprogs mount util-linux util-linux-extra
nftables iptables ipset dmsetup dosfstools
xz-utils zstd lz4 lzop bzip2 squashfs-tools strace
libnl-genl-3-200 libpopt0
dracut-core ansible-core"""
# Documentation and translations would double the image; man pages of kmodd come with its own installation.
EXCLUDED = (
    "/usr/share/doc/*",
    "/usr/share/locale/*",
    "/usr/share/info/*",
    "/usr/share/man/??/*",
    "/usr/share/man/??_*/*",
)

# The initramfs holds what the boot disk needs, not every driver there is: seconds less under emulation.
_SETUP = r"""#!/bin/sh
set -eu
initramfs=$1/usr/share/initramfs-tools
mkdir -p "$initramfs/conf.d" "$initramfs/modules.d"
printf 'MODULES=list\nCOMPRESS=zstd\n' > "$initramfs/conf.d/kmodd"
printf 'virtio_pci\nvirtio_blk\n' > "$initramfs/modules.d/kmodd"
"""
_HOOK = r"""#!/bin/sh
set -eu
root=$1; out=$2
release=$(basename "$root"/lib/modules/*)
echo "$release" > "$out/release"
cp "$root/boot/vmlinuz-$release" "$out/vmlinuz"
cp "$root/boot/initrd.img-$release" "$out/initrd"
chmod 0644 "$out/vmlinuz" "$out/initrd"
rm -f "$root"/boot/initrd.img-* "$root"/boot/vmlinuz-*
mkdir "$out/debs"; cd "$out/debs"
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
depends() { apt-cache show "$1" | sed -n '/^Depends: /{s///;s/ *([^)]*)//g;s/[,|]/ /g;p;q}' | tr -s ' ' '\n'; }
needed=$(depends "linux-headers-$release")
parts=$(echo "$needed" | grep -E '^linux-(headers|kbuild)-')
apt-get -o APT::Sandbox::User=root download "linux-headers-$release" $parts
# gcc-14, on Debian 12 by way of linux-compiler-gcc-12-x86, and what the programs of the kernel's build are linked with.
echo "$needed" | grep -oE 'gcc-[0-9]+' | head -n 1 > "$out/tools"
for part in $parts; do depends "$part" | grep '^lib' >> "$out/tools" || true; done
for deb in *.deb; do dpkg-deb -x "$deb" "$out/headers"; done
rm *.deb
# Of the 260 MB of collections in Debian's `ansible`, the one with the modules modprobe and kernel_blacklist.
apt-get -o APT::Sandbox::User=root download ansible
general=./usr/lib/python3/dist-packages/ansible_collections/community/general
dpkg-deb --fsys-tarfile ansible_*.deb | tar -C "$root" -x "$general/meta" "$general/MANIFEST.json" "$general/plugins/module_utils" \
    "$general/plugins/modules/modprobe.py" "$general/plugins/modules/kernel_blacklist.py"
# Programs that printed commands run, without the services and rules that their packages bring along.
packages="mdadm ipvsadm nbd-client btrfs-progs bcache-tools ebtables nfs-kernel-server open-iscsi crun"
# Their names differ between the releases.
packages="$packages $(for each in open-iscsi crun; do depends "$each"; done | grep -E '^lib(isns|openiscsiusr|yajl)')"
apt-get -o APT::Sandbox::User=root download $packages
for deb in $packages; do dpkg-deb -x "$deb"_*.deb "programs"; done
for program in mdadm ipvsadm nbd-client mkfs.btrfs make-bcache ebtables-legacy exportfs iscsiadm iscsid crun; do
    cp "$(find programs -type f \( -path "*/sbin/$program" -o -path "*/bin/$program" \) | head -n 1)" "$root/usr/sbin/"
done
libraries=$root/usr/lib/$(ls programs/usr/lib | grep -e '-linux-gnu$')
cp -d $(find programs -name 'libopeniscsiusr.so*' -o -name 'libisns.so*' -o -name 'libyajl.so*') "$libraries/"
cp -r programs/usr/lib/ebtables "$root/usr/lib/"
# What a test installs itself, for it is a service or brings one: all that `dpkg --install` takes.
kept=$root/usr/share/kmodd-tests/debs
for packages in "cockpit cockpit-ws cockpit-bridge cockpit-system" "podman podman"; do
    mkdir -p "$kept/${packages%% *}/partial"
    apt-get -o APT::Sandbox::User=root -o "Dir::Cache::archives=$kept/${packages%% *}" --no-install-recommends --download-only --yes \
        install ${packages#* }
    rm -rf "$kept/${packages%% *}/partial" "$kept/${packages%% *}/lock"
done
cd /; rm -rf "$out/debs" "$root/etc/apt/apt.conf.d/99mmdebstrap"
chmod -R a+rX "$out/headers"
"""


def build(*, fresh: bool = False) -> Path:
    """The cache entry with ``root.tar release vmlinuz initrd tools headers/``."""
    chosen = suite.chosen()
    return cache.entry(chosen.kind("rootfs"), cache.digest([chosen.name, Path(__file__)]), _make, fresh=fresh)


def release(rootfs: Path) -> str:
    """The kernel release of this root file system, as ``uname -r`` says it in the guest."""
    return (rootfs / "release").read_text().strip()


def tools(rootfs: Path) -> list[str]:
    """The packages that building a module for this kernel takes, its compiler first."""
    return (rootfs / "tools").read_text().split()


def arguments(packages: Iterable[str]) -> list[str]:
    """What every run of mmdebstrap that fetches packages is given, but for the suite, the target and the sources."""
    return [
        f"--include={','.join(packages)}",
        *(f"--aptopt={line}" for line in ['Acquire::Languages "none"', *_apt_options()]),
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED),
    ]


def sources() -> list[str]:
    """This machine's own package sources for the suite, as files mmdebstrap reads; else the suite on this machine's mirror."""
    folder = Path("/etc/apt")
    files = [
        folder / "sources.list",
        *sorted(folder.glob("sources.list.d/*.list")),
        *sorted(folder.glob("sources.list.d/*.sources")),
    ]
    offering = [str(file) for file in files if file.exists() and _offers_suite(file.read_text())]
    return offering or [host.source(suite.chosen().name)]


def _make(folder: Path) -> None:
    host.install_missing()
    say(f"building a root file system of {suite.chosen().title} (half a minute to a few, by your mirror)")
    with privilege.scratch() as work:
        out = work / "out"
        out.mkdir()
        out.chmod(0o777)
        setup, hook = script(work / "setup", _SETUP), script(work / "hook", _HOOK)
        hooks = [f'--setup-hook={setup} "$1"', f'--customize-hook={hook} "$1" {out}']
        command = [*privilege.mmdebstrap(), "--quiet", "--variant=minbase", *arguments(PACKAGES.split()), *hooks]
        host.run([*command, suite.chosen().name, str(out / "root.tar"), *sources()])
        for item in out.iterdir():
            _copy(item, folder / item.name)


def _apt_options() -> list[str]:
    """How this machine reaches its package sources (a proxy, clocks that are off), for mmdebstrap's own apt."""
    wanted = re.compile(
        r'^Acquire::(https?::Proxy|https?::Pipeline-Depth|Check-Valid-Until|Check-Date|Retries)\b.* ".+";$'
    )
    return [line for line in host.run(["apt-config", "dump"]).splitlines() if wanted.match(line)]


def _offers_suite(text: str) -> bool:
    words = {word for line in text.splitlines() if not line.lstrip().startswith("#") for word in line.split()}
    return suite.chosen().name in words and "main" in words and "debian" in text.lower()


def script(path: Path, text: str) -> Path:
    """A program of a hook."""
    path.write_text(text)
    path.chmod(0o755)
    return path


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copyfile(source, target)
