# SPDX-License-Identifier: LGPL-2.1-or-later
"""The initramfs is compared with what it was made from, by content where it can be read and by time where it cannot."""

import bz2
import gzip
import lzma
import os
import subprocess
from collections.abc import Callable, Mapping
from ctypes import CDLL, c_char_p, c_int, c_size_t, create_string_buffer
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kmodd.kernel.initramfs import CONTENT_MAX, NAME_MAX, Initramfs, members
from kmodd.kernel.modules.compression import Damaged, Unsupported
from kmodd.kernel.modules.trees import ModuleTrees
from kmodd.model.modules import Trees

RELEASE = "6.1.0-1-amd64"
DEBIAN, DRACUT = f"boot/initrd.img-{RELEASE}", f"boot/initramfs-{RELEASE}.img"
TREE = f"lib/modules/{RELEASE}"


def cpio(files: Mapping[str, bytes]) -> bytes:
    """An archive in the format of the kernel's initramfs (newc)."""
    out = b""
    for number, (name, content) in enumerate({**files, "TRAILER!!!": b""}.items()):
        raw = name.encode() + b"\0"
        fields = (number, 0o100644, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(raw), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + raw
        out += b"\0" * (-len(out) % 4) + content
        out += b"\0" * (-len(out) % 4)
    return out + b"\0" * (-len(out) % 512)


def zstd(data: bytes) -> bytes:
    library = CDLL("libzstd.so.1")
    compress = library.ZSTD_compress
    compress.restype, compress.argtypes = c_size_t, [c_char_p, c_size_t, c_char_p, c_size_t, c_int]
    space = create_string_buffer(len(data) + 1024)
    size = compress(space, len(space), data, len(data), 3)
    return space.raw[:size]


def xz(data: bytes) -> bytes:
    return lzma.compress(data, check=lzma.CHECK_CRC32)  # as the kernel's decoder wants it


def with_tool(*command: str) -> Callable[[bytes], bytes]:
    """Packs as initramfs-tools and dracut do, by the format's own program."""

    def pack(data: bytes) -> bytes:
        return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout

    return pack


def lzma_alone(data: bytes) -> bytes:
    return lzma.compress(data, format=lzma.FORMAT_ALONE)


EARLY = cpio({"kernel/x86/microcode/GenuineIntel.bin": b"\1" * 5000})
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "xz": xz,
    "zstd": zstd,
    "bzip2": bz2.compress,
    "lzma": lzma_alone,
    "lz4": with_tool("lz4", "-l", "-9", "-c"),
    "lzo": with_tool("lzop", "-9", "-c"),
}


@pytest.fixture(scope="module")
def packed() -> Mapping[str, bytes]:
    """A small image in each compression."""
    return {name: EARLY + pack(cpio({"etc/a.conf": b"one" * 50})) for name, pack in COMPRESSIONS.items()}


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("early", [b"", EARLY])
def test_archives_are_read(tmp_path: Path, compression: str, early: bytes) -> None:
    image = tmp_path / "image"
    big = os.urandom(300_000)
    image.write_bytes(
        early + COMPRESSIONS[compression](cpio({"./etc/a.conf": b"one", "/bin/sh": big, "etc/b.conf": b""}))
    )
    found = {name: (size, content) for name, size, content in members(image, lambda name: name.startswith("etc/"))}
    assert found.pop("kernel/x86/microcode/GenuineIntel.bin", (5000, None)) == (5000, None)
    assert found == {"etc/a.conf": (3, b"one"), "bin/sh": (300_000, None), "etc/b.conf": (0, b"")}


@pytest.mark.parametrize("compression", COMPRESSIONS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_damaged_archives_are_refused_or_read(
    tmp_path: Path, packed: Mapping[str, bytes], compression: str, data: st.DataObject
) -> None:
    whole = packed[compression]
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = whole[:at] + data.draw(st.binary(max_size=12)) + whole[at + data.draw(st.integers(0, 12)) :]
    image = tmp_path / "image"
    image.write_bytes(damaged)
    try:
        found = list(members(image, lambda name: True))
    except (Damaged, Unsupported):
        return
    # What is read is bounded by the header's own words, whatever they became.
    for name, size, content in found:
        assert len(name) <= NAME_MAX
        assert content is None or len(content) == size <= CONTENT_MAX


def test_a_bomb_of_zeros_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kmodd.kernel.initramfs.UNPACKED_MAX", 1 << 20)
    for compression in COMPRESSIONS.keys() - {"plain"}:
        image = tmp_path / compression
        image.write_bytes(COMPRESSIONS[compression](cpio({"a": bytes(3 << 20)})))
        with pytest.raises(Damaged):
            list(members(image, lambda name: False))


def test_a_missing_library_is_an_unsupported_compression(
    tmp_path: Path, packed: Mapping[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr("kmodd.kernel.initramfs.ctypes.CDLL", missing)
    for compression in ("lz4", "lzo"):
        (tmp_path / "image").write_bytes(packed[compression])
        with pytest.raises(Unsupported, match="is not installed"):
            list(members(tmp_path / "image", lambda name: False))


def test_a_member_of_a_negative_size_is_no_member(tmp_path: Path) -> None:
    archive = bytearray(cpio({"etc/a.conf": b"one"}) + bytes(1 << 20))
    archive[54:62] = b"-0000001"
    (tmp_path / "image").write_bytes(archive)
    with pytest.raises(Damaged, match="impossible size"):
        list(members(tmp_path / "image", lambda name: True))


class Machine:
    """A root folder with an initramfs that is up to date."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = {
            "etc/modprobe.d/a.conf": b"blacklist pcspkr\n",
            "usr/lib/modprobe.d/vendor.conf": b"options x y=1\n",
            f"{TREE}/kernel/drivers/x.ko": b"x" * 100,
        }
        for name, content in self.files.items():
            self.write(name, content)
        self.write(f"{TREE}/modules.dep", b"kernel/drivers/x.ko:\n")
        self.write("etc/initramfs-tools/modules", b"x\n")

    def write(self, name: str, content: bytes, *, age: int = 100) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self.date(name, age)

    def date(self, name: str, age: int) -> None:
        """Say that it was written `age` seconds before the image, or after it."""
        for path in (self.root / name, (self.root / name).parent):
            os.utime(path, (1_700_000_000 - age, 1_700_000_000 - age))

    def image(self, name: str = DEBIAN, content: bytes | None = None) -> Initramfs:
        inside = {f"usr/{k}" if k.startswith("lib/") else k: v for k, v in self.files.items()}
        self.write(name, zstd(cpio(inside)) if content is None else content, age=0)
        return Initramfs(self.root, RELEASE)


@pytest.fixture
def m(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_no_image_is_no_finding(m: Machine) -> None:
    assert Initramfs(m.root, RELEASE).look() is None


@pytest.mark.parametrize(("name", "command"), [(DEBIAN, "update-initramfs -u -k "), (DRACUT, f"dracut -f /{DRACUT} ")])
def test_a_changed_rule_makes_it_stale(m: Machine, name: str, command: str) -> None:
    image = m.image(name)
    found = image.look()
    assert found is not None
    assert (found.differences, found.refresh) == ((), command + RELEASE)
    m.write("etc/modprobe.d/a.conf", b"#\n", age=-5)
    found = image.look()
    assert found is not None
    assert found.differences == ("/etc/modprobe.d/a.conf has changed",)
    assert found.by_content


def test_the_same_content_written_again_is_not_stale(m: Machine) -> None:
    image = m.image()
    m.date("etc/modprobe.d/a.conf", -5)
    found = image.look()
    assert found is not None
    assert (found.differences, found.by_content) == ((), True)


def test_a_link_to_itself_among_the_rules_is_passed_over(m: Machine) -> None:
    image = m.image()
    (m.root / "etc/modprobe.d/loop.conf").symlink_to("loop.conf")
    found = image.look()
    assert found is not None
    assert found.differences == ("it lacks /etc/modprobe.d/loop.conf",)


def test_new_and_removed_rules(m: Machine) -> None:
    image = m.image()
    m.write("etc/modprobe.d/kmodd-blacklist.conf", b"blacklist x\n", age=-5)
    (m.root / "usr/lib/modprobe.d/vendor.conf").unlink()
    found = image.look()
    assert found is not None
    assert found.differences == (
        "it lacks /etc/modprobe.d/kmodd-blacklist.conf",
        "it still has /lib/modprobe.d/vendor.conf",
    )


def test_dracut_for_any_machine_has_no_rules_by_intention(m: Machine) -> None:
    image = m.image(DRACUT, gzip.compress(cpio({"bin/sh": b""})))
    m.write("etc/modprobe.d/a.conf", b"#\n", age=-5)
    found = image.look()
    assert found is not None
    assert found.differences == ()


def test_dracut_for_this_machine_lacks_what_is_new(m: Machine) -> None:
    m.files["usr/lib/dracut/hostonly-files"] = b"/etc/ld.so.conf\n"
    del m.files["etc/modprobe.d/a.conf"]
    image = m.image(DRACUT)
    m.write("etc/modprobe.d/kmodd-blacklist.conf", b"blacklist x\n", age=-5)
    assert differences(image) == ("it lacks /etc/modprobe.d/a.conf", "it lacks /etc/modprobe.d/kmodd-blacklist.conf")


def test_dracut_is_recognized_by_its_content(m: Machine) -> None:
    m.write("usr/sbin/update-initramfs", b"")
    m.files["usr/lib/dracut/build-parameter.txt"] = b""
    image = m.image(DEBIAN)
    m.write("etc/modprobe.d/a.conf", b"#\n", age=-5)
    m.write("etc/initramfs-tools/modules", b"y\n", age=-5)
    found = image.look()
    assert found is not None
    assert found.differences == ("/etc/modprobe.d/a.conf has changed",)
    assert (found.kind, found.refresh) == ("dracut", f"dracut -f /{DEBIAN} {RELEASE}")


def test_an_unread_image_belongs_to_what_is_installed(m: Machine) -> None:
    m.write("usr/bin/dracut", b"")
    image = m.image(DEBIAN, b"in no format")
    m.write("etc/modprobe.d/a.conf", b"#\n", age=-5)
    found = image.look()
    assert found is not None
    assert (found.by_content, found.refresh) == (False, f"dracut -f /{DEBIAN} {RELEASE}")
    m.write("usr/sbin/update-initramfs", b"")
    found = m.image(DEBIAN, b"in no format").look()
    assert found is not None
    assert found.refresh == f"update-initramfs -u -k {RELEASE}"


def test_folders_that_the_image_never_had_do_not_count(m: Machine) -> None:
    m.write("usr/local/lib/modprobe.d/mine.conf", b"options x y=2\n", age=-5)
    m.write("etc/modules-load.d/mine.conf", b"x\n", age=-5)
    image = m.image()
    assert differences(image) == ()
    m.files["etc/modules-load.d/mine.conf"] = b"x\n"
    image = m.image()
    m.write("etc/modules-load.d/kmodd.conf", b"y\n", age=-5)
    assert differences(image) == ("it lacks /etc/modules-load.d/kmodd.conf",)


@pytest.mark.parametrize("end", [".xz", ".zst"])
def test_compressed_modules_are_compared_too(m: Machine, end: str) -> None:
    del m.files[f"{TREE}/kernel/drivers/x.ko"]
    m.files[f"{TREE}/kernel/drivers/x.ko{end}"] = b"x" * 50
    m.write(f"{TREE}/kernel/drivers/x.ko{end}", b"x" * 50)
    m.write(f"{TREE}/modules.dep", f"kernel/drivers/x.ko{end}:\n".encode())
    image = m.image()
    m.date(f"{TREE}/modules.dep", -5)
    assert differences(image) == ()
    m.write(f"{TREE}/kernel/drivers/x.ko{end}", b"x" * 60)
    m.date(f"{TREE}/modules.dep", -6)
    assert differences(image) == ("x.ko has changed",)


def test_modules_that_changed_moved_or_went(m: Machine) -> None:
    image = m.image()
    m.write(f"{TREE}/kernel/drivers/x.ko", b"longer" * 100, age=-5)
    m.write(f"{TREE}/modules.dep", b"kernel/drivers/x.ko:\n", age=-5)
    assert differences(image) == ("x.ko has changed",)
    m.write(f"{TREE}/modules.dep", b"updates/x.ko:\n", age=-6)
    assert differences(image) == ("it has x.ko from kernel/drivers/x.ko, but updates/x.ko is in effect",)
    m.write(f"{TREE}/modules.dep", b"", age=-7)
    assert differences(image) == ("it has x.ko, which no longer exists",)


def differences(image: Initramfs) -> tuple[str, ...]:
    found = image.look()
    assert found is not None
    return found.differences


def test_the_list_of_modules_counts_by_its_time(m: Machine) -> None:
    image = m.image()
    m.write("etc/initramfs-tools/modules", b"x\ny\n", age=-5)
    assert differences(image) == ("/etc/initramfs-tools/modules is newer",)


def test_what_cannot_be_read_is_judged_by_time(m: Machine) -> None:
    image = m.image(content=b"\x04\x22\x4d\x18 an lz4 frame")
    assert differences(image) == ()
    m.write("etc/modprobe.d/a.conf", b"blacklist pcspkr\n", age=-5)
    found = image.look()
    assert found is not None
    assert (found.differences, found.by_content) == (("/etc/modprobe.d/a.conf is newer",), False)


def test_trees_of_other_kernels_and_replaced_modules(m: Machine) -> None:
    for release in ("6.1.0-10-amd64", "6.1.0-rc9", "6.1.0-2-amd64", "5.10.0-99-amd64"):
        m.write(f"lib/modules/{release}/modules.dep.bin", b"")
    m.write("lib/modules/6.1.0-11-amd64/half-removed", b"")
    m.write(f"{TREE}/modules.order", b"kernel/drivers/x.ko\nkernel/net/a-b.ko\n")
    m.write(f"{TREE}/updates/dkms/a_b.ko.xz", b"")
    m.write(f"{TREE}/updates/new.ko", b"")
    assert ModuleTrees(m.root, RELEASE).look() == Trees(
        newer=("6.1.0-2-amd64", "6.1.0-10-amd64"), replaced=(("a_b", f"/{TREE}/updates/dkms/a_b.ko.xz"),)
    )


def test_what_initramfs_tools_is_to_load(tmp_path: Path) -> None:
    assert Initramfs(tmp_path, RELEASE).listed() == ()
    (tmp_path / "usr/share/initramfs-tools/modules.d").mkdir(parents=True)
    (tmp_path / "usr/share/initramfs-tools/modules.d/kvm").write_text("virtio-blk\n")
    (tmp_path / "etc/initramfs-tools").mkdir(parents=True)
    (tmp_path / "etc/initramfs-tools/modules").write_text("# early\n\nraid1 # the root\ndm_crypt a=1\n")
    assert [(rule.module, rule.file, rule.line) for rule in Initramfs(tmp_path, RELEASE).listed()] == [
        ("raid1", "/etc/initramfs-tools/modules", 3),
        ("dm_crypt", "/etc/initramfs-tools/modules", 4),
        ("virtio_blk", "/usr/share/initramfs-tools/modules.d/kvm", 1),
    ]
