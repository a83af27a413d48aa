# SPDX-License-Identifier: LGPL-2.1-or-later
"""The module index over fake roots, against modprobe where modprobe can say it."""

import errno
import os
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

from kmodd.errors import BadModule, ModuleTreeMissing, NoSuchModule
from kmodd.kernel.modules.index import TABLES, IndexState, LibkmodIndex, index_state
from kmodd.kernel.modules.libkmod import Context, load_library
from kmodd.kernel.ports import ModuleIndex
from kmodd.model import FactsPending
from kmodd.names import Alias, ModuleName
from tests.conformance import debian13
from tests.kernel.fakeroot import RELEASE, FakeModule, FakeRoot, names, root_of, scenario

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = ModuleName("plain")


def modprobe(root: FakeRoot, *arguments: str) -> list[str]:
    """Run modprobe on a fake root with its own /etc/modprobe.d only."""
    command = [
        "modprobe",
        "-d",
        str(root.root),
        "-S",
        root.release,
        "-C",
        str(root.root / "etc/modprobe.d"),
        *arguments,
    ]
    done: subprocess.CompletedProcess[str] = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()


@pytest.fixture
def dependencies(tmp_path: Path) -> FakeRoot:
    return scenario("dependencies", tmp_path)


@pytest.fixture
def aliases(tmp_path: Path) -> FakeRoot:
    return scenario("aliases", tmp_path)


def test_it_has_the_shape_the_core_asks_for(dependencies: FakeRoot) -> None:
    index: ModuleIndex = dependencies.index()  # mypy compares the signatures
    assert index.exists(ModuleName("top"))
    assert {name for name in vars(ModuleIndex) if not name.startswith("_")} <= set(dir(index))


# --- dependencies ---------------------------------------------------------------------------------------------------


def test_a_diamond_is_inserted_from_the_bottom_and_each_module_once(dependencies: FakeRoot) -> None:
    assert names(dependencies.index().dependencies(ModuleName("top"))) == ["ground", "base_mod", "left", "right"]


def test_insertion_order_and_paths_are_modprobes(dependencies: FakeRoot) -> None:
    dependencies.write("etc/modprobe.d/0.conf", "softdep * nothing\n")  # modprobe shows soft dependencies in between
    index = dependencies.index()
    for name in index.available():
        shown = [line.split()[1] for line in modprobe(dependencies, "--show-depends", name)]
        assert [index.path(needed) for needed in (*index.dependencies(name), name)] == shown


def test_built_ins_are_no_dependencies(dependencies: FakeRoot) -> None:
    index = dependencies.index()
    assert index.dependencies(ModuleName("inside")) == ()
    assert index.dependencies(ModuleName("needs_inside")) == ()


def test_a_dependency_whose_file_is_gone_is_still_named(dependencies: FakeRoot) -> None:
    (dependencies.tree / "kernel/lib/base-mod.ko.zst").unlink()
    assert "base_mod" in dependencies.index().dependencies(ModuleName("top"))


def test_what_is_unknown_has_no_dependencies(dependencies: FakeRoot) -> None:
    assert dependencies.index().dependencies(ModuleName("nosuch")) == ()


def test_of_several_softdep_lines_the_first_counts_as_for_libkmod(dependencies: FakeRoot) -> None:
    assert dependencies.index().softdeps(ModuleName("soft")) == (("ground", "own-before"), ("own-after",))
    context = Context(load_library(), str(dependencies.tree), [str(dependencies.root / "etc/modprobe.d")])
    assert context.softdeps("soft") == (["ground", "own_before"], ["own_after"])
    context.close()


def test_softdeps_come_from_the_modules_too_and_may_be_patterns(dependencies: FakeRoot) -> None:
    index = dependencies.index()
    assert index.softdeps(ModuleName("right")) == (("own-before",), ("own-after",))
    assert index.softdeps(ModuleName("wildcard")) == (("ground",), ())
    assert index.softdeps(ModuleName("top")) == ((), ())
    (rule,) = index.rules(ModuleName("right"))
    assert (rule.kind, rule.file) == ("softdep", str(dependencies.tree / "modules.softdep"))


def test_weak_dependencies_are_libkmods_or_none(tmp_path: Path) -> None:
    files = {"etc/modprobe.d/a.conf": "weakdep plain other\n"}
    root = root_of(tmp_path, FakeModule("plain"), FakeModule("other"), files=files)
    expected = ("other",) if hasattr(load_library(), "kmod_module_get_weakdeps") else ()
    assert root.index().weakdeps(NAME) == expected


# --- names and aliases ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("first", ["first"]),
        ("plain_net", ["plain_net"]),
        ("net-pf-77", ["plain_net"]),
        ("pci:v00001234d00000001sv0sd0bc0sc0i0", ["first"]),
        ("symbol:a_function", ["exporter"]),
        ("fs-inside", ["inside"]),
        ("inside", ["inside"]),
        ("renamed", ["replacement"]),
        ("my-7-card", ["first"]),
        ("my-x-card", []),
        ("chained", ["renamed"]),
        ("net-pf-5", []),
        ("commanded", []),
        ("nosuch", []),
        ("", []),
        ("a\0b", []),
        ("bad]bracket", []),
        ("x" * 512, []),
    ],
)
def test_what_a_name_stands_for(aliases: FakeRoot, asked: str, found: list[str]) -> None:
    index = aliases.index()
    assert names(index.resolve(Alias(asked))) == found
    assert names(index.resolve(Alias(asked))) == found, "from memory"


def test_an_alias_may_stand_for_several_modules(aliases: FakeRoot) -> None:
    both = "pci:v00001234d00005678sv0sd0bc0sc0i0"
    index = aliases.index()
    assert sorted(index.resolve(Alias(both))) == ["first", "second"]
    assert names(index.resolve(Alias(both))) == modprobe(aliases, "-R", both)
    assert sorted(index.resolve(Alias("shared"))) == ["first", "second"]


def test_many_different_questions_do_not_fill_the_memory(aliases: FakeRoot) -> None:
    index = aliases.index()
    for number in range(6000):
        index.resolve(Alias(f"nosuch:{number}"))
    assert len(index._targets) <= 4096


# --- what there is --------------------------------------------------------------------------------------------------


def test_files_and_built_ins(aliases: FakeRoot) -> None:
    index = aliases.index()
    assert list(index.available()) == ["exporter", "first", "plain_net", "renamed", "replacement", "second"]
    assert list(index.builtins()) == ["inside"]
    assert index.exists(ModuleName("inside"))
    assert index.is_builtin(ModuleName("inside"))
    assert not index.is_builtin(ModuleName("first"))
    assert index.path(ModuleName("inside")) == ""
    assert index.path(ModuleName("nosuch")) == ""
    assert index.path(ModuleName("plain_net")) == str(aliases.tree / "kernel/net/plain-net.ko")


def test_facts_of_a_built_in(aliases: FakeRoot) -> None:
    info = aliases.index().info(ModuleName("inside"))
    assert (info.filename, info.description, info.intree, info.signed) == (
        "",
        "A file system in the image",
        True,
        False,
    )
    assert [(one.name, one.type, one.description) for one in info.parameters] == [("depth", "int", "How deep")]


def test_no_such_module(aliases: FakeRoot) -> None:
    with pytest.raises(NoSuchModule, match=r"no module nosuch for kernel 6\.1\.0-test"):
        aliases.index().info(ModuleName("nosuch"))


def test_the_environment_of_modprobe_has_no_effect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODPROBE_OPTIONS", "-C /nowhere --ignore-install -a -b")
    root = root_of(tmp_path, FakeModule("plain"), files={"etc/modprobe.d/a.conf": "alias other plain\n"})
    assert root.index().resolve(ModuleName("other")) == ("plain",)


def test_given_folders_replace_the_usual_ones(tmp_path: Path) -> None:
    root = root_of(tmp_path, FakeModule("plain"), files={"etc/modprobe.d/a.conf": "blacklist plain\n"})
    root.write("own/b.conf", "options plain x=1\nalias other plain\n")
    index = LibkmodIndex(tmp_path, RELEASE, config_dirs=[tmp_path / "own"], command_line="plain.y=2")
    assert [(rule.kind, rule.value) for rule in index.rules(NAME)] == [("options", "x=1"), ("options", "y=2")]
    assert index.resolve(ModuleName("other")) == ("plain",)


# --- changes --------------------------------------------------------------------------------------------------------


@pytest.fixture
def changing(tmp_path: Path) -> FakeRoot:
    return root_of(tmp_path, FakeModule("plain"), files={"etc/modprobe.d/a.conf": "options plain x=1\n"})


def kinds(index: LibkmodIndex) -> list[tuple[str, str]]:
    return [(rule.kind, rule.value) for rule in index.rules(NAME)]


def test_nothing_changed_nothing_read(changing: FakeRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    index = changing.index()

    def no_reading(*_: object) -> None:
        raise AssertionError("something was read")

    monkeypatch.setattr(Path, "read_bytes", no_reading)
    monkeypatch.setattr(Context, "__init__", no_reading)
    assert not index.refresh()
    assert kinds(index) == [("options", "x=1")]


def test_a_file_edited_in_place(changing: FakeRoot) -> None:
    index = changing.index()
    time.sleep(0.01)  # the kernel's time stamps are a few milliseconds coarse, and the size stays the same
    changing.write("etc/modprobe.d/a.conf", "options plain x=2\n")
    assert index.refresh()
    assert kinds(index) == [("options", "x=2")]
    assert not index.refresh()


def test_new_masked_and_removed_files(changing: FakeRoot) -> None:
    index = changing.index()
    changing.write("lib/modprobe.d/b.conf", "blacklist plain\n")
    assert index.refresh()
    assert kinds(index) == [("options", "x=1"), ("blacklist", "")]
    changing.write("etc/modprobe.d/b.conf", "")
    assert index.refresh()
    assert kinds(index) == [("options", "x=1")]
    changing.write("lib/modprobe.d/b.conf", "blacklist plain\nblacklist other\n")
    assert not index.refresh(), "a masked file is of no interest"
    (changing.root / "etc/modprobe.d/b.conf").unlink()
    assert index.refresh()
    assert kinds(index) == [("options", "x=1"), ("blacklist", "")]


def test_two_new_files_within_one_tick_of_the_clock(changing: FakeRoot) -> None:
    index = changing.index()
    for number in range(50):
        changing.write(f"etc/modprobe.d/{number}.conf", f"alias number{number} plain\n")
        assert index.refresh()
        assert index.resolve(ModuleName(f"number{number}")) == ("plain",)


def test_an_index_that_was_rebuilt(changing: FakeRoot) -> None:
    index = changing.index()
    assert not index.exists(ModuleName("late"))
    assert index.resolve(ModuleName("late-alias")) == ()
    changing.put(FakeModule("late", depends=("plain",), aliases=("late-alias",)))
    changing.depmod()
    assert index.refresh()
    assert index.exists(ModuleName("late"))
    assert index.resolve(ModuleName("late-alias")) == ("late",)
    assert index.dependencies(ModuleName("late")) == ("plain",)
    assert list(index.available()) == ["late", "plain"]


def test_a_module_moved_to_another_folder(changing: FakeRoot) -> None:
    index = changing.index()
    changing.put(FakeModule("plain", folder="updates", info=("version=2",)))
    changing.depmod()
    assert index.info(NAME).version == ""
    index.refresh()
    assert index.path(NAME) == str(changing.tree / "updates/plain.ko")
    assert index.info(NAME).version == "2"


def test_a_module_file_replaced_in_place_is_read_again_without_refresh(changing: FakeRoot) -> None:
    index = changing.index()
    assert index.info(NAME) is index.info(NAME), "from memory"
    changing.put(FakeModule("plain", info=("version=2",)))
    assert index.info(NAME).version == "2"


def test_facts_are_kept_of_some_modules_only(tmp_path: Path) -> None:
    root = root_of(tmp_path, *(FakeModule(f"m{number}") for number in range(40)))
    index = root.index()
    for name in index.available():
        index.info(name)
    assert len(index._info) == 32
    assert index.info(ModuleName("m0")).name == "m0"


# --- a tree that is missing or damaged --------------------------------------------------------------------------------


def test_a_missing_tree(tmp_path: Path) -> None:
    index = LibkmodIndex(tmp_path, "6.1.0-gone", command_line="module_blacklist=plain")
    assert not index.tree_present
    assert not index.exists(NAME)
    assert index.resolve(NAME) == index.dependencies(NAME) == index.weakdeps(NAME) == ()
    assert list(index.available()) == list(index.builtins()) == []
    assert [rule.kind for rule in index.rules(NAME)] == ["module_blacklist"]
    with pytest.raises(ModuleTreeMissing, match=r"6\.1\.0-gone cannot be used: modules\.dep\.bin is missing") as caught:
        index.info(NAME)
    assert "reboot" in caught.value.evidence.hint


def test_a_tree_that_goes_and_comes_back(changing: FakeRoot) -> None:
    index = changing.index()
    changing.tree.rename(changing.root / "aside")
    assert index.refresh()
    assert not index.exists(NAME)
    assert not index.refresh()
    (changing.root / "aside").rename(changing.tree)
    assert index.refresh()
    assert index.exists(NAME)
    assert index.info(NAME).name == "plain"


INDEXES = ["modules.dep.bin", "modules.alias.bin", "modules.symbols.bin", "modules.builtin.bin"]


@pytest.mark.parametrize("depmod", ["this machine's", "Debian 13's"])
@pytest.mark.parametrize("file", [*INDEXES, "modules.builtin.alias.bin"])
def test_an_index_is_sound_in_its_full_length_only(aliases: FakeRoot, depmod: str, file: str) -> None:
    command = debian13.modprobe("depmod") if depmod == "Debian 13's" else ("depmod",)
    subprocess.run([*command, "-b", aliases.root, aliases.release], check=True, capture_output=True)
    path = aliases.tree / file
    data = path.read_bytes()
    assert index_state(str(path)) is IndexState.SOUND
    assert len(data) > 12
    for length in range(len(data)):
        path.write_bytes(data[:length])
        assert index_state(str(path)) is not IndexState.SOUND, length


def test_an_index_of_nothing_is_sound(tmp_path: Path) -> None:
    root = root_of(tmp_path)
    assert (root.tree / "modules.dep.bin").stat().st_size == 12
    index = root.index()
    assert index.tree_present
    assert list(index.available()) == []
    with pytest.raises(NoSuchModule):
        index.info(NAME)


NO_INDEX = [b"", b"not an index at all", b"\xb0\x07\xf4\x57\x00\x03\x00\x01\x00\x00\x00\x0c"]


@pytest.mark.parametrize("damage", NO_INDEX)
@pytest.mark.parametrize("file", INDEXES[1:])
def test_a_side_index_that_libkmod_does_not_open_is_as_if_it_were_missing(
    dependencies: FakeRoot, file: str, damage: bytes
) -> None:
    index = dependencies.index()
    (dependencies.tree / file).write_bytes(damage)
    assert index.refresh()
    shown = [line.split()[1] for line in modprobe(dependencies, "--show-depends", "top") if line.startswith("insmod")]
    assert index.resolve(ModuleName("top")) == ("top",)
    assert index.path(ModuleName("top")) == shown[-1]


@pytest.mark.parametrize(
    ("file", "damage"),
    [*((file, None) for file in INDEXES if "alias" not in file), *((INDEXES[0], text) for text in NO_INDEX)],
)
def test_a_damaged_index_is_never_given_to_libkmod(dependencies: FakeRoot, file: str, damage: bytes | None) -> None:
    index = dependencies.index()
    path = dependencies.tree / file
    path.write_bytes(path.read_bytes()[:-1] if damage is None else damage)
    assert index.refresh()
    assert index.resolve(ModuleName("top")) == ()
    with pytest.raises(ModuleTreeMissing, match=f"{file} is damaged") as caught:
        index.info(ModuleName("top"))
    assert caught.value.evidence.hint == "run 'depmod -a'"
    dependencies.depmod()
    assert index.refresh()
    assert index.resolve(ModuleName("top")) == ("top",)


# --- cost -----------------------------------------------------------------------------------------------------------


def test_planning_one_module_again_is_a_fraction_of_a_millisecond(dependencies: FakeRoot) -> None:
    index = dependencies.index()

    def plan() -> None:
        index.refresh()
        for name in index.resolve(ModuleName("top")):
            for step in (*index.dependencies(name), name):
                index.path(step)
                index.softdeps(step)
                index.rules(step)
                index.info(step)

    plan()
    best = min(_timed(plan) for _ in range(50))
    assert best < 0.001, "0.1 ms here; ten times that on a busy machine is still no reading of files"


def _timed(what: object) -> float:
    start = time.perf_counter()
    assert callable(what)
    what()
    return time.perf_counter() - start


def test_no_descriptor_stays_open(dependencies: FakeRoot) -> None:
    index = dependencies.index()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        dependencies.write("etc/modprobe.d/b.conf", f"blacklist {time.monotonic_ns()}\n")
        index.refresh()
        for name in index.available():
            index.info(name)
            index.resolve(name)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    index.close()
    index.close()


def test_deferred_facts_are_read_elsewhere_and_kept(tmp_path: Path) -> None:
    root = FakeRoot(tmp_path, [FakeModule("a", suffix=".ko.xz"), FakeModule("b", builtin=True)]).build()
    index, a, b = root.index(), ModuleName("a"), ModuleName("b")
    with index.deferred():
        assert index.unread((a, b, ModuleName("nowhere"))) == (a,)
        with pytest.raises(FactsPending) as pending:
            index.info(a)
        assert pending.value.names == (a,)
        index.keep_facts(a, index.read_facts(a))
        assert index.info(a).filename.endswith("a.ko.xz")
        assert index.unread((a,)) == ()
        root.put(FakeModule("a", suffix=".ko.xz", info=("description=new",)))
        assert index.unread((a,)) == (a,)
    assert index.info(a).description == "new"


def test_the_texts_of_depmod_are_read_elsewhere_too(tmp_path: Path) -> None:
    """What was read of a tree that has changed meanwhile is not kept."""
    modules = [FakeModule("a", aliases=("pci:v1",)), FakeModule("b", builtin=True)]
    root = FakeRoot(tmp_path, modules).build()
    index, a, b = root.index(), ModuleName("a"), ModuleName("b")
    asks: tuple[Callable[[], object], ...] = (
        lambda: index.aliases(a),
        lambda: index.info(b),
        lambda: index.file_for(ModuleName("renamed")),
    )
    for number, ask in enumerate(asks):
        assert index.unread((TABLES,)) == ()
        with index.deferred():
            with pytest.raises(FactsPending) as pending:
                ask()
            (needed,) = pending.value.names
            assert index.unread((needed,)) == (TABLES,)
            read = index.read_facts(needed)
            if not number:
                root.put(FakeModule("c", aliases=("pci:v2",)))
                root.depmod()
                assert index.refresh()
                index.keep_facts(needed, read)
                with pytest.raises(FactsPending):
                    ask()
                read = index.read_facts(needed)
            index.keep_facts(needed, read)
    with index.deferred():
        assert index.aliases(a) == ("pci:v1",)
        assert index.info(b).intree
    assert index.aliases(ModuleName("c")) == ("pci:v2",)
    index.close()


def test_a_damaged_file_is_an_answer_and_a_fault_of_the_machine_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = FakeRoot(tmp_path, [FakeModule("a"), FakeModule("b")]).build()
    index, a, b = root.index(), ModuleName("a"), ModuleName("b")
    (root.tree / "kernel/drivers/a.ko").write_bytes(b"\x7fELF")
    index.keep_facts(a, index.read_facts(a))
    with index.deferred(), pytest.raises(BadModule):
        index.info(a)
    with monkeypatch.context() as broken:
        broken.setattr("os.open", partial(_fail, errno.EMFILE))
        index.keep_facts(b, index.read_facts(b))
    with index.deferred(), pytest.raises(BadModule, match="cannot be read"):
        index.info(b)
    assert index.info(b).name == b


def test_facts_kept_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kmodd.kernel.modules.module_file.BYTES_MAX", 2500)
    root = FakeRoot(tmp_path, [FakeModule(name) for name in "abcdefgh"]).build()
    index = root.index()
    names = tuple(index.available())
    for name in names:
        index.info(name)
    unread = index.unread(names)
    assert 2 <= len(unread) < len(names)
    assert unread == names[: len(unread)]


def _fail(code: int, *_: object, **__: object) -> NoReturn:
    raise OSError(code, os.strerror(code))
