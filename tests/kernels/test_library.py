from __future__ import annotations

import ctypes
import os
import platform
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from kernel_helpers import CAN_RUN, fake_gcc, gcc, kernel_names, needs_kernels
from thumbnet.kernels import library

VECTORS = {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16"}
# A library that creates a file when it is loaded.
TRAP = """
#include <stdio.h>
__attribute__((constructor)) static void run(void) { FILE *file = fopen("%s", "w"); if (file) fclose(file); }
"""

# A program that loads a library and resolves all its functions.
LOADER = """
#include <dlfcn.h>
#include <stdio.h>
int main(int count, char **words) { return dlopen(words[count - 1], RTLD_NOW) ? 0 : (puts(dlerror()), 1); }
"""


@pytest.fixture(autouse=True)
def forget_the_kernels(by_real_path: None) -> Iterator[None]:
    library.forget()
    yield
    library.forget()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the library, in a cache that does not exist yet."""
    monkeypatch.setenv("THUMBNET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


@pytest.fixture(scope="module")
def trap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trap")
    source, compiled = folder / "trap.c", folder / "trap.so"
    source.write_text(TRAP % (folder / "sprung"))
    subprocess.run([gcc(), "-shared", "-fPIC", "-o", str(compiled), str(source)], check=True)
    assert not sprung(compiled)
    ctypes.CDLL(str(compiled))
    assert sprung(compiled)
    return compiled


def sprung(trap: Path) -> bool:
    """Whether a trap was loaded since the last call."""
    mark = trap.with_name("sprung")
    found = mark.exists()
    mark.unlink(missing_ok=True)
    return found


def set_up(trap: Path, folder: Path) -> Path:
    """Put the trap in the place of the library."""
    folder.mkdir(parents=True, mode=0o700)
    target = folder / name()
    content = trap.read_bytes()
    target.write_bytes(content + library._seal(content))
    target.chmod(0o600)
    return target


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def kept(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def name() -> str:
    return library._name(library.needed_units(tiles()))


def tiles() -> bool:
    """Whether this processor has matrix tiles, and the system grants them."""
    return library._tiles_granted()


def start() -> tuple[str | None, str | None]:
    """Load the kernels, and return why they are off and why they are not kept."""
    library.forget()
    return library.why_off(), library.why_not_kept()


def start_processes(count: int) -> list[int]:
    """Load the kernels in ``count`` new processes at once, and return their exit statuses."""
    code = "from thumbnet.kernels import library as k; assert k.load_kernels() and not k.why_not_kept()"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
    return [process.wait(timeout=300) for process in processes]


@needs_kernels
@pytest.mark.usefixtures("quick")
def test_the_kernels_are_compiled_once_and_kept_for_their_user_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.umask(0)
    try:
        assert library.load_kernels() is not None
    finally:
        os.umask(before)
    (compiled,) = kept(folder)
    assert compiled.name == name()
    assert (mode(folder), mode(compiled)) == (0o700, 0o600)
    assert (library.why_off(), library.why_not_kept()) == (None, None)
    monkeypatch.setattr(library, "compile_library", lambda *_: pytest.fail("compiled again"))
    library.forget()
    assert library.load_kernels() is not None


@needs_kernels
@pytest.mark.usefixtures("quick")
def test_without_a_cache_each_process_compiles_its_own(folder: Path) -> None:
    folder.parent.write_text("a file where the folder should be")
    assert library.load_kernels() is not None
    assert library.why_off() is None
    assert "File exists" in str(library.why_not_kept())


@needs_kernels
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("others", [0o720, 0o702, 0o777])
def test_a_folder_that_others_can_write_to_is_not_used(others: int, folder: Path, trap: Path) -> None:
    planted = set_up(trap, folder)
    folder.chmod(others)
    assert start() == (None, f"other users can write to {folder} (mode {others:o}): chmod go-w {folder}")
    assert not sprung(trap)
    assert kept(folder) == [planted]


@needs_kernels
@pytest.mark.usefixtures("quick")
def test_a_library_in_a_private_folder_is_loaded(folder: Path, trap: Path) -> None:
    """This shows that the traps of these tests work."""
    set_up(trap, folder)
    assert start() == (None, None)
    assert sprung(trap)


@needs_kernels
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("others", [0o620, 0o602])
def test_a_library_that_others_can_write_to_is_not_loaded(others: int, folder: Path, trap: Path) -> None:
    planted = set_up(trap, folder)
    planted.chmod(others)
    assert start() == (None, f"other users can write to {planted} (mode {others:o}): chmod go-w {planted}")
    assert not sprung(trap)


@needs_kernels
@pytest.mark.usefixtures("quick")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("what", ["folder", "library"])
def test_a_library_or_folder_of_another_user_is_not_used(what: str, folder: Path, trap: Path) -> None:
    planted = set_up(trap, folder)
    given_away = folder if what == "folder" else planted
    os.chown(given_away, 12345, -1)
    assert start() == (None, f"{given_away} belongs to another user (id 12345)")
    assert not sprung(trap)


@needs_kernels
@pytest.mark.usefixtures("quick")
def test_a_link_to_a_library_elsewhere_is_not_followed(folder: Path, trap: Path) -> None:
    folder.mkdir(parents=True, mode=0o700)
    (folder / name()).symlink_to(trap)
    off, not_kept = start()
    assert off is None
    assert "other users can write to" in str(not_kept)
    assert not sprung(trap)


@needs_kernels
@pytest.mark.usefixtures("quick")
def test_without_a_private_folder_the_kernels_are_off_and_the_reason_is_given(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    assert library.load_kernels() is None
    assert "belongs to another user" in str(library.why_off())


@needs_kernels
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("content", [b"", b"not a library", b"\x7fELF"])
def test_a_damaged_library_is_compiled_again(content: bytes, folder: Path) -> None:
    folder.mkdir(parents=True, mode=0o700)
    (folder / name()).write_bytes(content)
    (folder / name()).chmod(0o600)
    assert start() == (None, None)
    assert (folder / name()).stat().st_size > 10_000
    assert kept(folder) == [folder / name()]


@needs_kernels
@pytest.mark.usefixtures("quick")
def test_a_library_with_a_flipped_bit_is_not_loaded_but_compiled_again(folder: Path, trap: Path) -> None:
    planted = set_up(trap, folder)
    content = bytearray(planted.read_bytes())
    content[len(content) // 2] ^= 1
    planted.write_bytes(content)
    assert start() == (None, None)
    assert not sprung(trap)
    assert planted.read_bytes() != bytes(content)


@needs_kernels
def test_several_processes_can_compile_at_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, test_kernels: ctypes.CDLL
) -> None:
    fake_gcc(tmp_path, monkeypatch, f"sleep 0.3; cp {test_kernels._name} $target")  # so that they overlap
    assert start_processes(4) == [0] * 4
    assert kept(folder) == [folder / name()]


@needs_kernels
def test_a_compilation_that_fails_half_way_leaves_no_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_gcc(
        tmp_path,
        monkeypatch,
        "echo half > $target; echo disk full >&2; exit 1",
    )
    assert library.load_kernels() is None
    assert str(library.why_off()).endswith("gcc cannot compile them: disk full")
    assert kept(folder) == []


@needs_kernels
def test_a_compilation_that_is_killed_leaves_nothing_under_the_final_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, test_kernels: ctypes.CDLL
) -> None:
    with monkeypatch.context() as changed:
        fake_gcc(tmp_path, changed, "echo half > $target; kill -9 $PPID")
        assert start_processes(1) == [-signal.SIGKILL]
    (left,) = kept(folder)
    assert left.is_dir()
    os.utime(left, (0, 0))
    with monkeypatch.context() as changed:
        compiled = test_kernels._name
        changed.setattr(library, "compile_library", lambda _, made, units: shutil.copy(compiled, made))
        assert start() == (None, None)
    assert kept(folder) == [folder / name()]  # leftovers that are at least a day old are removed


def test_the_name_depends_on_sources_flags_and_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def name_of(**changes: Any) -> str:
        with monkeypatch.context() as changed:
            changed.setattr(library, "description", lambda: ["model name : one"])
            for key, value in changes.items():
                changed.setattr(library, key, value)
            return library._name(changes.get("UNITS", library.UNITS))

    edited = tmp_path / "norm.c"
    edited.write_text("/* one more comment */" + (library.SOURCES[0].parent / "norm.c").read_text())
    units = tuple(edited if path.name == "norm.c" else path for path in library.UNITS)
    header = tmp_path / "memory.h"
    header.write_text("/* one more comment */")
    headers = tuple(header if path.name == "memory.h" else path for path in library.SOURCES)
    names = [
        name_of(),
        name_of(UNITS=units),
        name_of(UNITS=library.needed_units(tiles=True)),
        name_of(SOURCES=headers),
        name_of(FLAGS=(*library.FLAGS, "-g")),
        name_of(_TILE_FLAGS=("-mamx-tile",)),
        name_of(description=lambda: ["model name : two"]),
    ]
    assert len(set(names)) == len(names)
    assert name_of() == names[0]


@needs_kernels
@pytest.mark.usefixtures("quick")
def test_kernels_in_the_cache_need_no_gcc(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert start() == (None, None)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert start() == (None, None)
    (folder / name()).unlink()
    assert start() == ("there is no gcc to compile them: install gcc and start again", None)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (
            "In file included from a.c:1:\nb.h:2:10: fatal error: no stdlib.h\n    2 | #include",
            "b.h:2:10: fatal error",
        ),
        ("ld: cannot find crti.o\ncollect2: error: ld returned 1 exit status", "ld: cannot find crti.o"),
        ("", "exit status 1"),
    ],
    ids=["headers", "linker", "silent"],
)
def test_the_reason_is_what_the_compiler_calls_an_error(lines: str, reason: str) -> None:
    failed = subprocess.CalledProcessError(1, ["gcc"], stderr=lines.encode())
    assert library._reason(failed).startswith(reason)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that compile all kernels; none is run."""
    found: list[list[str]] = []
    monkeypatch.setattr(library, "_run_together", found.extend)
    library.compile_library("gcc", tmp_path / "kernels.so")
    return found


def test_only_files_for_matrix_tiles_are_compiled_with_their_instructions(commands: list[list[str]]) -> None:
    """So gcc 10, which does not know them, compiles the others."""
    found = {Path(words[-1]).name for words in commands if set(words) & set(library._TILE_FLAGS)}
    assert found == {"tile_conv.c", "tile_gradient.c"}


def test_one_command_compiles_all_short_files_and_every_file_is_compiled_once_and_linked(
    commands: list[list[str]],
) -> None:
    *compiling, linking = commands
    files = [[Path(word).name for word in words if word.endswith(".c")] for words in compiling]
    assert sorted(name for names in files for name in names) == [path.name for path in library.UNITS]
    assert [set(names) for names in files if len(names) > 1] == [library._SHORT]
    made = [words[words.index("-o") + 1] for words in compiling]
    assert sorted(word for word in linking if word.endswith(".o")) == sorted(set(made))


def test_the_library_has_every_kernel(test_kernels: ctypes.CDLL) -> None:
    assert len(set(kernel_names())) == len(kernel_names()) > 10
    for kernel in kernel_names():
        assert getattr(test_kernels, kernel)


def test_the_library_brings_all_that_it_needs(test_kernels: ctypes.CDLL, tmp_path: Path) -> None:
    """It may not rely on what Python happens to have loaded, such as libm."""
    source, program = tmp_path / "loader.c", tmp_path / "loader"
    source.write_text(LOADER)
    subprocess.run([gcc(), "-o", str(program), str(source), "-ldl"], check=True)
    done = subprocess.run([str(program), test_kernels._name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("lacks", ["avx512_bf16", "avx512bw", "avx512f avx512bw avx512vl avx512dq"])
def test_all_instructions_for_which_the_kernels_are_compiled_are_needed(
    lacks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A virtual machine may hide some of them."""
    found = (VECTORS | {"amx_tile", "amx_bf16"}).difference(lacks.split())
    monkeypatch.setattr(library, "instructions", lambda: found)
    monkeypatch.setattr(sys, "platform", "linux")
    assert library._obstacle() == "this processor has no AVX-512 BF16"


def test_matrix_tiles_without_bfloat16_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_ask_for_tiles", lambda: True)
    for tiles_of, granted in (({"amx_tile"}, False), ({"amx_tile", "amx_bf16"}, True)):
        monkeypatch.setattr(library, "instructions", lambda found=tiles_of: VECTORS | found)
        assert library._tiles_granted() is granted


@pytest.mark.skipif(not CAN_RUN, reason="no AVX-512 BF16 or no gcc here")
def test_the_kernels_load_where_the_processor_can_run_them_and_there_is_gcc() -> None:
    """The other tests of the kernels skip if they do not load, so this one has to fail."""
    assert library.load_kernels() is not None, library.why_off()


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64" or shutil.which("gcc") is None,
    reason="there is no gcc for x86-64 on Linux here",
)
def test_gcc_compiles_all_kernels_even_where_the_processor_cannot_run_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    knows = [gcc(), "-mamx-bf16", "-fsyntax-only", "-x", "c", os.devnull]
    if subprocess.run(knows, capture_output=True, check=False).returncode:
        pytest.skip("this gcc knows no matrix units: 11 is the first that does")
    if CAN_RUN:  # the fixture test_kernels compiles them with -O3, which takes most of the time
        monkeypatch.setattr(library, "FLAGS", ("-O1", *(flag for flag in library.FLAGS if flag != "-O3")))
    target = tmp_path / "kernels.so"
    library.compile_library(gcc(), target)
    assert target.stat().st_size > 0


@needs_kernels
@pytest.mark.usefixtures("quick")
def test_kernels_compiled_ahead_are_not_loaded_and_not_compiled_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as changed:
        changed.setattr(library, "_load_checked", lambda *_: pytest.fail("loaded"))
        library.compile_ahead()
    assert [path.name for path in kept(folder)] == [name()]
    monkeypatch.setattr(library, "compile_library", lambda *_: pytest.fail("compiled again"))
    library.compile_ahead()
    assert start() == (None, None)


@needs_kernels
def test_what_fails_ahead_is_reported_when_the_kernels_are_loaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_gcc(tmp_path, monkeypatch, "echo no room >&2; exit 1")
    library.compile_ahead()
    assert kept(folder) == []
    assert str(library.why_off()).endswith("gcc cannot compile them: no room")


@needs_kernels
@pytest.mark.usefixtures("quick")
def test_the_kernels_of_stride_2_are_compiled_when_they_are_needed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = library.load_kernels()
    assert len(kept(folder)) == 1
    strided = library.load_kernels(strided=True)
    assert strided is not None
    assert len(kept(folder)) == 2
    assert library.load_kernels() is base
    assert library.load_kernels(strided=True) is strided


@needs_kernels
def test_if_one_file_cannot_be_compiled_the_other_compilers_are_ended(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = tmp_path / "pids"
    fails = f"until test -s {pids}; do sleep 0.01; done; echo bad >&2; exit 1"
    script = f'case "$last" in *tile_conv.c|*winograd.c) {fails};; esac; echo $$ >> {pids}; exec sleep 3000'
    fake_gcc(tmp_path, monkeypatch, script)
    assert str(library.why_off()).endswith("gcc cannot compile them: bad")
    assert kept(folder) == []
    for pid in pids.read_text().split():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_the_sources_are_these() -> None:
    names = [path.name for path in library.SOURCES]
    assert names == [
        "augment.c",
        "memory.h",
        "muon.c",
        "norm.c",
        "strided.c",
        "tile_conv.c",
        "tile_gradient.c",
        "tiles.h",
        "vectors.h",
        "whiten.c",
        "winograd.c",
        "winograd.h",
    ]


def test_a_processor_with_matrix_tiles_needs_no_winograd_and_one_without_needs_no_tiles() -> None:
    having = ["augment.c", "muon.c", "norm.c", "tile_conv.c", "tile_gradient.c", "whiten.c"]
    assert [path.name for path in library.needed_units(tiles=True)] == having
    without = ["augment.c", "muon.c", "norm.c", "whiten.c", "winograd.c"]
    assert [path.name for path in library.needed_units(tiles=False)] == without
    assert [path.name for path in library.needed_units(tiles=False, strided=True)] == ["strided.c"]


@needs_kernels
@pytest.mark.parametrize("granted", [False, True])
def test_without_the_systems_leave_a_processor_with_tiles_computes_by_winograd(
    granted: bool, folder: Path, monkeypatch: pytest.MonkeyPatch, test_kernels: ctypes.CDLL
) -> None:
    asked: list[str] = []

    def compile_library(compiler: str, made: Path, units: Sequence[Path]) -> None:
        asked.extend(path.name for path in units)
        shutil.copy(test_kernels._name, made)

    monkeypatch.setattr(library, "instructions", lambda: {*VECTORS, "amx_tile", "amx_bf16"})
    monkeypatch.setattr(library, "_ask_for_tiles", lambda: granted)
    monkeypatch.setattr(library, "compile_library", compile_library)
    assert library.has_tiles() is granted
    assert asked == [path.name for path in library.needed_units(granted)]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"instructions": set}, "this processor has no AVX-512 BF16"),
        ({"instructions": lambda: VECTORS, "shutil.which": lambda _: None}, "there is no gcc"),
        ({"sys.platform": "plan9"}, "they need Linux, and this is plan9"),
    ],
    ids=["old processor", "no compiler", "other system"],
)
@pytest.mark.usefixtures("folder")
def test_the_reason_is_given_if_kernels_cannot_run(
    changes: dict[str, object], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in changes.items():
        monkeypatch.setattr(f"thumbnet.kernels.library.{key}", value)
    assert library.load_kernels() is None
    assert str(library.why_off()).startswith(reason)
    assert not library.has_tiles()
    assert library.why_not_kept() is None


def test_kernels_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THUMBNET_KERNELS", "0")
    assert library.load_kernels() is None
    assert library.why_off() == "THUMBNET_KERNELS=0"


@needs_kernels
def test_kernels_are_loaded_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = library.load_kernels()
    monkeypatch.setattr(library, "_load", lambda _: pytest.fail("loaded again"))
    assert first is not None
    assert library.load_kernels() is first
