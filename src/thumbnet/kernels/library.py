"""Compile the kernels with gcc at first use, keep the library in the user's cache, and load it.

A shared library is code that this process will run. It is therefore kept in a folder that only the user can
write to, and loaded only if the user owns the folder and the library and nobody else can write to them.
Otherwise every process compiles its own library in a private folder, and :func:`why_not_kept` gives the
reason. If the kernels cannot run at all, their reference implementations in PyTorch run instead, and
:func:`why_off` gives the reason.

Nothing here needs PyTorch, so that gcc can work while PyTorch is imported.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from thumbnet.files import cache_folder, clear_leftovers
from thumbnet.kernels.processor import description, instructions

SOURCES = tuple(sorted(Path(__file__).parent.glob("*.[ch]")))
UNITS = tuple(path for path in SOURCES if path.suffix == ".c")
# The instruction sets that all kernels need, and those for matrix tiles, in Linux's names.
_VECTORS = {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16"}
_TILES = {"amx_tile", "amx_bf16"}
FLAGS = ("-O3", "-fPIC", "-fopenmp", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16")
_TILE_FLAGS = ("-mamx-tile", "-mamx-bf16")  # only for tile_*.c, because gcc 10 does not know them
_SHORT = {"augment.c", "muon.c", "norm.c", "whiten.c"}  # for every processor, compiled together
_SEAL = 32  # bytes of a SHA-256
_COMPILING = ".compiling-"  # prefix of the folders of unfinished compilations
_LONGEST = 120  # seconds that gcc may take
_ARCH_PRCTL, _REQUEST, _TILE_DATA = 158, 0x1023, 18  # how to ask Linux on x86-64 for tiles: arch_prctl(2)


@dataclass(frozen=True)
class _Kernels:
    """The result of loading the kernels."""

    library: ctypes.CDLL | None = None
    has_tiles: bool = False
    why_off: str | None = None
    why_not_kept: str | None = None


class _NoCompilerError(subprocess.SubprocessError):
    """A library has to be compiled, and there is no compiler."""


_loaded: dict[bool, _Kernels] = {}  # by ``strided``
_loading = threading.Lock()


def load_kernels(strided: bool = False) -> ctypes.CDLL | None:
    """The compiled kernels; None if they cannot run (see :func:`why_off`).

    The first call loads them. If they are not in the cache, it compiles them first, which takes seconds. The
    convolutions of stride 2 for processors without matrix tiles are a library of their own, ``strided``,
    because they take a third of that time, and the fastest networks have none.
    """
    return _kernels(strided).library


def compile_ahead() -> None:
    """Compile the kernels into the cache, unless they are there or loaded; :func:`load_kernels` waits.

    The library is not loaded: PyTorch must load its OpenMP first. Errors are not reported here, because
    :func:`load_kernels` meets them again.
    """
    if _loaded or _obstacle() is not None:
        return
    with _loading, suppress(OSError, subprocess.SubprocessError):
        units = needed_units(_tiles_granted())
        folder, name = _checked_folder(), _name(units)
        if not (folder / name).exists():
            _compile_whole(units, folder, name)


def has_tiles() -> bool:
    """Whether the kernels can use matrix tiles (AMX)."""
    return _kernels().has_tiles


def kind_of_kernels() -> str:
    """How the kernels convolve, and so round: ``winograd`` or ``tiles``; ``none`` if they cannot run."""
    if load_kernels() is None:
        return "none"
    return "tiles" if has_tiles() else "winograd"


def why_off() -> str | None:
    """Why the kernels cannot run, in a few words; None if they can."""
    return _kernels().why_off


def why_not_kept() -> str | None:
    """Why the kernels are not cached, so that every process compiles them again; None if they are."""
    return _kernels().why_not_kept


def switch_off(why: str) -> None:
    """Do not run the kernels in this process from now on, although they could; ``why`` in a few words."""
    _loaded.update(dict.fromkeys([False, True], _Kernels(why_off=why)))


def forget() -> None:
    """Forget the loaded kernels, so that the next call loads them again. For tests."""
    _loaded.clear()


def needed_units(tiles: bool, strided: bool = False) -> tuple[Path, ...]:
    """The C files of a library, for a processor with matrix tiles or without."""
    if strided:
        names = {"strided.c"}
    else:
        convolutions = {"tile_conv.c", "tile_gradient.c"} if tiles else {"winograd.c"}
        names = {*_SHORT, *convolutions}
    return tuple(path for path in UNITS if path.name in names)


def compile_library(compiler: str, target: Path, units: Sequence[Path] = UNITS) -> None:
    """Compile kernels into the shared library ``target``: all of them, or those in ``units``.

    They are compiled at the same time, in a temporary folder beside ``target``. The short files are one unit,
    because gcc takes most of its time for each of them to read its own header.

    Raises:
        subprocess.SubprocessError: the compiler fails, or takes more than two minutes.
        OSError: the compiler cannot be started, or the folder cannot be written.
    """
    with tempfile.TemporaryDirectory(dir=target.parent, ignore_cleanup_errors=True) as place:
        short = [unit for unit in units if unit.name in _SHORT]
        together = [[unit] for unit in units if unit not in short]
        if short:
            together.append(short)
        objects = [str(Path(place) / f"{group[-1].stem}.o") for group in together]
        _run_together(
            [compiler, *_flags_of(last), *_included(before), "-c", "-o", made, str(last)]
            for made, (*before, last) in zip(objects, together, strict=True)
        )
        _run_together([[compiler, *FLAGS, "-shared", "-o", str(target), *objects]])


def _included(units: Sequence[Path]) -> list[str]:
    """How gcc is told to compile files as the beginning of another one."""
    return [word for unit in units for word in ("-include", str(unit))]


def _flags_of(unit: Path) -> tuple[str, ...]:
    """The flags with which a C file is compiled."""
    return (*FLAGS, *_TILE_FLAGS) if unit.name.startswith("tile_") else FLAGS


def _kernels(strided: bool = False) -> _Kernels:
    if strided not in _loaded:
        with _loading:  # two threads may get here at the same time
            if strided not in _loaded:
                _loaded[strided] = _load(strided)
    return _loaded[strided]


def _load(strided: bool) -> _Kernels:
    off = _obstacle()
    if off is not None:
        return _Kernels(why_off=off)
    tiles = _tiles_granted()
    try:
        library, why_not_kept = _kept_or_private(needed_units(tiles, strided))
    except _NoCompilerError:
        return _Kernels(why_off="there is no gcc to compile them: install gcc and start again")
    except subprocess.CalledProcessError as error:
        return _Kernels(why_off=f"{error.cmd[0]} cannot compile them: {_reason(error)}")
    except (OSError, subprocess.SubprocessError) as error:
        return _Kernels(why_off=f"they cannot be compiled or loaded: {error}")
    return _Kernels(library, tiles, why_not_kept=why_not_kept)


def _reason(error: subprocess.CalledProcessError) -> str:
    """The line of a compiler's messages that says what is wrong.

    The lines before it only say where, and ``collect2`` only that the linker failed.
    """
    lines = (error.stderr or b"").decode(errors="replace").splitlines()
    errors = [line for line in lines if "error:" in line and not line.startswith("collect2:")]
    return [*errors, *lines, f"exit status {error.returncode}"][0]


def _obstacle() -> str | None:
    """Why the kernels cannot run here even if gcc could compile them; None if they can."""
    if os.environ.get("THUMBNET_KERNELS", "1") == "0":
        return "THUMBNET_KERNELS=0"
    if sys.platform != "linux":
        return f"they need Linux, and this is {sys.platform}"
    if not instructions() >= _VECTORS:
        return "this processor has no AVX-512 BF16"
    return None


def _tiles_granted() -> bool:
    """Whether there are matrix tiles. A process gets their registers from Linux only on request."""
    return instructions() >= _TILES and _ask_for_tiles()


def _ask_for_tiles() -> bool:
    request = map(ctypes.c_long, (_ARCH_PRCTL, _REQUEST, _TILE_DATA))
    return int(ctypes.CDLL(None).syscall(*request)) == 0


def _kept_or_private(units: Sequence[Path]) -> tuple[ctypes.CDLL, str | None]:
    """The library from the cache and None; or a library for this process alone, and the reason."""
    name = _name(units)
    try:
        return _kept(units, name), None
    except OSError as error:
        why = str(error)
    with tempfile.TemporaryDirectory(prefix="thumbnet-kernels-") as private:
        _compile_whole(units, Path(private), name)
        return _load_checked(Path(private), name), why


def _checked_folder() -> Path:
    """The libraries' folder in the cache, made if it is missing.

    Raises:
        PermissionError: another user owns it, or can write to it.
        OSError: it cannot be made.
    """
    folder = cache_folder() / "kernels"
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    _check_owner(folder, folder.stat())
    return folder


def _kept(units: Sequence[Path], name: str) -> ctypes.CDLL:
    """The library ``name`` from the cache. gcc compiles it only if it is missing or damaged.

    Raises:
        PermissionError: another user owns the folder or the library, or can write to it.
        OSError: the folder cannot be written, or the library cannot be loaded.
        subprocess.SubprocessError: it cannot be compiled.
    """
    folder = _checked_folder()
    if (folder / name).exists():
        try:
            return _load_checked(folder, name)
        except PermissionError:
            raise
        except OSError:  # damaged: replace it below
            pass
    _compile_whole(units, folder, name)
    return _load_checked(folder, name)


def _compile_whole(units: Sequence[Path], folder: Path, name: str) -> None:
    """Compile in a new folder, then rename to ``folder / name``. Several processes may do this at once.

    Raises:
        OSError, subprocess.SubprocessError: it cannot be compiled, or there is no compiler.
    """
    clear_leftovers(folder, _COMPILING)
    compiler = shutil.which("gcc")
    if compiler is None:
        raise _NoCompilerError
    with tempfile.TemporaryDirectory(dir=folder, prefix=_COMPILING, ignore_cleanup_errors=True) as place:
        made = Path(place) / name
        compile_library(compiler, made, units)
        made.chmod(0o600)  # regardless of the umask
        with made.open("r+b") as file:
            content = file.read()
            file.write(_seal(content))
            file.flush()
            os.fsync(file.fileno())  # so that a power failure cannot leave an empty file under the final name
        made.replace(folder / name)


def _load_checked(folder: Path, name: str) -> ctypes.CDLL:
    """Load the library ``name`` from ``folder`` if only this user can have written it.

    Both the check and the loading use the same open folder, so nobody can replace it in between.

    Raises:
        PermissionError: another user owns the folder or the library, or can write to it.
        OSError: the library is damaged or cannot be loaded.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _check_owner(folder, os.fstat(descriptor))
        _check_owner(folder / name, os.stat(name, dir_fd=descriptor, follow_symlinks=False))
        path = f"/proc/self/fd/{descriptor}/{name}"
        content = Path(path).read_bytes()
        if content[-_SEAL:] != _seal(content[:-_SEAL]):
            raise OSError(f"{folder / name} is damaged")
        return ctypes.CDLL(path)
    finally:
        os.close(descriptor)


def _seal(content: bytes) -> bytes:
    """The digest that ends the file of a library, after ``content``, where the loader ignores it.

    A flipped bit would otherwise compute something else. It is no protection against an attacker: that is
    the private folder.
    """
    return hashlib.sha256(content).digest()


def _check_owner(path: Path, status: os.stat_result) -> None:
    """Raise PermissionError if another user owns ``path`` or can write to it."""
    if status.st_uid != os.geteuid():
        raise PermissionError(f"{path} belongs to another user (id {status.st_uid})")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(status.st_mode)
        raise PermissionError(f"other users can write to {path} (mode {mode:o}): chmod go-w {path}")


def _name(units: Sequence[Path]) -> str:
    """The name of a library: 16 of its digits depend on sources, flags and processor.

    They do not depend on the compiler, so that a library in the cache needs none. If a faulty gcc compiles
    wrong code, it stays in use after gcc is updated, until the library is deleted or thumbnet changes a
    source or flag. A library that another system compiled and that does not load here counts as damaged.
    """
    headers = [path for path in SOURCES if path.suffix == ".h"]
    sources = [(path.name, path.read_bytes()) for path in (*units, *headers)]
    described = repr((sources, [_flags_of(unit) for unit in units], description()))
    return f"kernels-{hashlib.sha256(described.encode()).hexdigest()[:16]}.so"


def _run_together(commands: Iterable[list[str]]) -> None:
    """Run commands at the same time; if one fails, end the others.

    Raises:
        subprocess.CalledProcessError: a command failed; ``stderr`` is what it wrote.
        subprocess.TimeoutExpired: a command took too long.
        OSError: a command cannot be started.
    """
    with ExitStack() as stack:  # closes the pipes, and waits for the processes
        running: list[subprocess.Popen[bytes]] = []
        try:
            for command in commands:
                process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
                running.append(stack.enter_context(process))
            for process in running:
                _, written = process.communicate(timeout=_LONGEST)
                if process.returncode:
                    raise subprocess.CalledProcessError(process.returncode, process.args, stderr=written)
        except BaseException:
            for process in running:
                process.kill()
            raise
