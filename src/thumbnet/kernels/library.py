"""Compile the kernels with gcc at first use, keep the library in the user's cache, and load it.

A shared library is code that this process will run. It is therefore kept in a folder that only the user can
write to, and loaded only if the user owns the folder and the library and nobody else can write to them.
Otherwise every process compiles its own library in a private folder, and :func:`why_not_kept` gives the
reason. If the kernels cannot run at all, their reference implementations in PyTorch run instead, and
:func:`why_off` gives the reason.
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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from thumbnet.files import cache_folder, clear_leftovers

SOURCES = tuple(sorted(Path(__file__).parent.glob("*.[ch]")))
UNITS = tuple(path for path in SOURCES if path.suffix == ".c")
_INSTRUCTIONS = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512bf16", "amx-tile", "amx-bf16")
FLAGS = ("-O3", "-shared", "-fPIC", "-fopenmp", *(f"-m{name}" for name in _INSTRUCTIONS))
_SEAL = 32  # bytes of a SHA-256
_COMPILING = ".compiling-"  # prefix of the folders of unfinished compilations
_ARCH_PRCTL, _REQUEST, _TILE_DATA = 158, 0x1023, 18  # how to ask Linux on x86-64 for tiles: arch_prctl(2)


@dataclass(frozen=True)
class _Kernels:
    """The result of loading the kernels."""

    library: ctypes.CDLL | None = None
    has_tiles: bool = False
    why_off: str | None = None
    why_not_kept: str | None = None


_loaded: _Kernels | None = None
_loading = threading.Lock()


def load_kernels() -> ctypes.CDLL | None:
    """The compiled kernels; None if they cannot run (see :func:`why_off`).

    The first call loads them. If they are not in the cache, it compiles them first, which takes seconds.
    """
    return _kernels().library


def has_tiles() -> bool:
    """Whether the kernels can use matrix tiles (AMX)."""
    return _kernels().has_tiles


def why_off() -> str | None:
    """Why the kernels cannot run, in a few words; None if they can."""
    return _kernels().why_off


def why_not_kept() -> str | None:
    """Why the kernels are not cached, so that every process compiles them again; None if they are."""
    return _kernels().why_not_kept


def forget() -> None:
    """Forget the loaded kernels, so that the next call loads them again. For tests."""
    global _loaded
    _loaded = None


def multiplies_bf16() -> bool:
    """Whether the processor can multiply bfloat16, with matrix tiles (AMX) or vectors (AVX-512 BF16)."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def needed_units(tiles: bool) -> tuple[Path, ...]:
    """The C files that a processor needs, with matrix tiles or without.

    Winograd's algorithm takes three quarters of the time to compile, and is not used with tiles.
    """
    unused = ("winograd.c", "strided.c") if tiles else ("tile_conv.c", "tile_gradient.c")
    return tuple(path for path in UNITS if path.name not in unused)


def compile_library(
    compiler: str, target: Path, units: Sequence[Path] = UNITS, extra_flags: Sequence[str] = ()
) -> None:
    """Compile kernels into the shared library ``target``: all of them, or those in ``units``.

    Raises:
        subprocess.SubprocessError: the compiler fails, or takes more than two minutes.
        OSError: the compiler cannot be started.
    """
    _run([compiler, *FLAGS, *extra_flags, "-o", str(target), *map(str, units)])


def _kernels() -> _Kernels:
    global _loaded
    if _loaded is None:
        with _loading:  # two threads may get here at the same time
            if _loaded is None:
                _loaded = _load()
    return _loaded


def _load() -> _Kernels:
    off = _obstacle()
    compiler = shutil.which("gcc")
    if off is None and compiler is None:
        off = "there is no gcc to compile them: install gcc and start again"
    if off is not None or compiler is None:
        return _Kernels(why_off=off)
    tiles = torch.cpu._is_amx_tile_supported() and _ask_for_tiles()
    try:
        library, why_not_kept = _kept_or_private(compiler, needed_units(tiles))
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or b"").decode(errors="replace").splitlines()
        reason = lines[0] if lines else f"exit status {error.returncode}"
        return _Kernels(why_off=f"{compiler} cannot compile them: {reason}")
    except (OSError, subprocess.SubprocessError) as error:
        return _Kernels(why_off=f"they cannot be compiled or loaded: {error}")
    return _Kernels(library, tiles, why_not_kept=why_not_kept)


def _obstacle() -> str | None:
    """Why the kernels cannot run here even if gcc could compile them; None if they can."""
    if os.environ.get("THUMBNET_KERNELS", "1") == "0":
        return "THUMBNET_KERNELS=0"
    if not multiplies_bf16():
        return "this processor has neither AVX-512 BF16 nor AMX"
    if sys.platform != "linux":
        return f"they need Linux, and this is {sys.platform}"
    return None


def _ask_for_tiles() -> bool:
    """Ask Linux for the registers of matrix tiles, which a process gets only on request."""
    request = map(ctypes.c_long, (_ARCH_PRCTL, _REQUEST, _TILE_DATA))
    return int(ctypes.CDLL(None).syscall(*request)) == 0


def _kept_or_private(compiler: str, units: Sequence[Path]) -> tuple[ctypes.CDLL, str | None]:
    """The library from the cache and None; or a library for this process alone, and the reason."""
    name = f"kernels-{_digest(compiler, units)}.so"
    try:
        return _kept(compiler, units, cache_folder() / "kernels", name), None
    except OSError as error:
        why = str(error)
    with tempfile.TemporaryDirectory(prefix="thumbnet-kernels-") as private:
        _compile_whole(compiler, units, Path(private), name)
        return _load_checked(Path(private), name), why


def _kept(compiler: str, units: Sequence[Path], folder: Path, name: str) -> ctypes.CDLL:
    """The library ``name`` from ``folder``. It is compiled if it is missing or damaged.

    Raises:
        PermissionError: another user owns the folder or the library, or can write to it.
        OSError: the folder cannot be written, or the library cannot be loaded.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    _check_owner(folder, folder.stat())
    if (folder / name).exists():
        try:
            return _load_checked(folder, name)
        except PermissionError:
            raise
        except OSError:  # damaged: replace it below
            pass
    _compile_whole(compiler, units, folder, name)
    return _load_checked(folder, name)


def _compile_whole(compiler: str, units: Sequence[Path], folder: Path, name: str) -> None:
    """Compile in a new folder, then rename to ``folder / name``. Several processes may do this at once."""
    clear_leftovers(folder, _COMPILING)
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


def _digest(compiler: str, units: Sequence[Path]) -> str:
    """16 hexadecimal digits that depend on the sources, the flags, the compiler and the processor."""
    headers = [path for path in SOURCES if path.suffix == ".h"]
    sources = [(path.name, path.read_bytes()) for path in (*units, *headers)]
    described = repr((sources, FLAGS, _run([compiler, "--version"]), _processor()))
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def _processor() -> list[str]:
    """The lines with the model and the instruction sets of the first processor, from Linux."""
    first = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").split("\n\n")[0]
    return [line for line in first.splitlines() if line.startswith(("model name", "flags"))]


def _run(command: list[str]) -> bytes:
    return subprocess.run(command, check=True, capture_output=True, timeout=120).stdout
