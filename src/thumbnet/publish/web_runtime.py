"""ONNX Runtime Web, which runs a network in a browser: two files of its package on npm.

They are part of thumbnet's wheel: ``make web-runtime`` fetches them when it is built. A source checkout
without them fetches them at the first ``thumbnet export --format web``, into the cache folder. npm does the
download, so whatever it is set to use (a proxy, a registry, a cache) counts here too.
"""

from __future__ import annotations

import base64
import gzip
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from thumbnet.errors import RunError, ThumbnetError, printable
from thumbnet.files import cache_folder, file_digest, remove_file, write_file

VERSION = "1.30.0"
# As npm states it: npm view onnxruntime-web@1.30.0 dist.integrity
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
SCRIPT, WASM = f"ort-{VERSION}.mjs", f"ort-{VERSION}.wasm.gz"
_MEMBERS = {
    "package/dist/ort.wasm.bundle.min.mjs": SCRIPT,
    "package/dist/ort-wasm-simd-threaded.wasm": WASM,
}


@dataclass(frozen=True)
class WebRuntime:
    """ONNX Runtime Web.

    Attributes:
        script: its JavaScript, a module.
        wasm: its WebAssembly, compressed by gzip.
    """

    script: str
    wasm: bytes


def packaged_folder() -> Path:
    """The folder in the package that holds the runtime in a wheel, and after ``make web-runtime``."""
    return Path(str(resources.files("thumbnet.publish"))) / "web" / "runtime"


def cached_folder() -> Path:
    """The folder in the cache that holds the runtime of a source checkout."""
    return cache_folder() / "onnxruntime-web"


def is_in(folder: Path) -> bool:
    """Whether ``folder`` holds the runtime."""
    return all((folder / name).is_file() for name in _MEMBERS.values())


def find_runtime() -> Path | None:
    """The folder that holds the runtime: in the package, or in the cache; None if neither does."""
    folders = (packaged_folder(), cached_folder())
    return next((folder for folder in folders if is_in(folder)), None)


def load_runtime() -> WebRuntime:
    """Read the runtime from the package or the cache folder. Fetch it into the cache if it is in neither.

    Raises:
        RunError: it cannot be fetched, read or written.
    """
    folder = find_runtime()
    if folder is None:
        folder = cached_folder()
        fetch_runtime(folder)
    try:
        return WebRuntime((folder / SCRIPT).read_text("utf-8"), (folder / WASM).read_bytes())
    except OSError as error:
        raise RunError(f"cannot read ONNX Runtime Web in {folder}: {error.strerror or error}") from None


def fetch_runtime(folder: Path) -> None:
    """Let npm download the package, verify it, and write its two files to ``folder``.

    Raises:
        RunError: there is no npm, it cannot download the package, the package is not the expected one, or the
            files cannot be written.
    """
    advice = (
        f"The page contains ONNX Runtime Web {VERSION} (33 MB to download, once). Install npm, or copy the "
        f"folder {folder} from a computer that has written such a page"
    )
    npm = shutil.which("npm")
    if npm is None:
        raise RunError(f"cannot fetch ONNX Runtime Web: there is no npm on this computer.\n{advice}")
    with tempfile.TemporaryDirectory(prefix="thumbnet-") as place:
        asked = subprocess.run(
            [npm, "pack", f"onnxruntime-web@{VERSION}", "--ignore-scripts", "--silent"],
            cwd=place,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        package = Path(place) / f"onnxruntime-web-{VERSION}.tgz"
        if asked.returncode or not package.is_file():
            reason = asked.stderr.strip().splitlines()[-1:] or [f"npm ended with status {asked.returncode}"]
            raise RunError(f"npm cannot fetch ONNX Runtime Web: {printable(reason[0])}.\n{advice}")
        digest = bytes.fromhex(file_digest(package, "sha512"))
        found = f"sha512-{base64.b64encode(digest).decode()}"
        if found != INTEGRITY:
            raise RunError(
                f"ONNX Runtime Web {VERSION} from npm has the digest {found}, expected {INTEGRITY}: it is "
                f"damaged or not the official one, and was deleted.\n{advice}"
            )
        unpack(package, folder)


def unpack(package: Path, folder: Path) -> None:
    """Write the two files of a verified package to ``folder``, the WebAssembly compressed by gzip.

    Raises:
        RunError: the package is damaged, or the files cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(package, "r|gz") as tar:
            for member in tar:
                name = _MEMBERS.get(member.name)
                file = tar.extractfile(member) if name and member.isreg() else None
                if name is None or file is None:
                    continue
                content = file.read()
                write_file(folder / name, gzip.compress(content, 9, mtime=0) if name == WASM else content)
    except (OSError, EOFError, tarfile.TarError) as error:
        raise RunError(f"cannot unpack {package}: {error}") from None
    if not is_in(folder):
        raise RunError(f"{package} is not ONNX Runtime Web: delete it, and run the same command again")


def install(folder: Path) -> None:
    """Fetch the runtime into ``folder``, unless it is there, and remove other versions.

    Raises:
        RunError: as for :func:`fetch_runtime`.
    """
    if not is_in(folder):
        fetch_runtime(folder)
    for path in folder.glob("ort-*"):
        if path.name not in _MEMBERS.values():
            remove_file(path)


if __name__ == "__main__":
    try:
        install(packaged_folder())
    except ThumbnetError as error:
        sys.exit(str(error))
